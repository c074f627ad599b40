"""The deployment of a store and all that a next decision has to know, in one object, `production.json`."""

import json
import uuid
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from mnist_pipeline.ml.manifest import WAITING, Decision
from mnist_pipeline.ml.records import Digests
from mnist_pipeline.stores.errors import CorruptModel

PRODUCTION = "production.json"
WRITTEN = "written"
"""The field with a random number, another one each time that the object is written."""


class State(BaseModel, frozen=True):
    """The content of `production.json`: the fields of the decision that deployed what is deployed, and those below.

    Earlier code, which knows the decision only, reads it too.
    """

    deployed: Decision | None = Field(None, description="None: nothing ever was.")
    waiting: Decision | None = Field(None, description="The candidate that waits for approval.")
    rolled_back: dict[str, str] = Field(
        {}, description="The reason for each rollback, by the digests of the model that it took out of production."
    )
    pruning: tuple[str, ...] = Field((), description="Versions that prune is about to delete: not to be deployed.")
    test_sets: dict[str, int] = Field({}, description="How often a set of test images decided, by its content digest.")
    whole: bool = Field(True, exclude=True, description="False: earlier code wrote the object, which lacks the rest.")
    token: str | None = Field(
        None, exclude=True, description="Of the object it was read from; None: there is none yet."
    )

    @property
    def sequence(self) -> int:
        """The number of the deployment; 0 where there is none, or one of before there were numbers."""
        return (self.deployed.sequence or 0) if self.deployed else 0

    @property
    def deployed_id(self) -> str | None:
        """The id of the decision that deployed what is deployed."""
        return self.deployed.id if self.deployed else None

    def rolled_back_because(self, model: Digests) -> str | None:
        """Return the reason for the rollback that took a model out of production; None if it may be there."""
        reasons = (why for text, why in self.rolled_back.items() if Digests.parse(text).same(model))
        return next(reasons, None)

    @property
    def in_use(self) -> set[str | None]:
        """The versions that are deployed, were replaced by that, are the reference, or wait."""
        used: set[str | None] = {self.waiting.version} if self.waiting else set()
        if self.deployed:
            used |= {self.deployed.version, self.deployed.incumbent_version, self.deployed.reference}
        return used

    def deploying(self, decision: Decision) -> "State":
        """Return the state after a promotion. Nothing waits then; a rollback marks the model that it replaces."""
        rolled_back = dict(self.rolled_back)
        if decision.strategy == "rollback" and self.deployed:
            rolled_back[str(self.deployed.digests)] = decision.reason
        for text in [text for text in rolled_back if Digests.parse(text).same(decision.digests)]:
            del rolled_back[text]
        return self.counting(decision).model_copy(
            update={"deployed": decision, "waiting": None, "rolled_back": rolled_back}
        )

    def recording(self, decision: Decision) -> "State":
        """Return the state after a decision that deploys nothing: it may wait, or end the waiting of its candidate."""
        waiting = self.waiting
        if decision.outcome == WAITING:
            waiting = decision
        elif waiting and waiting.digests.same(decision.digests):
            waiting = None
        return self.counting(decision).model_copy(update={"waiting": waiting})

    def counting(self, decision: Decision) -> "State":
        """Return the state with one decision more by the test images, if they decided."""
        if not decision.by_evidence or decision.test_digest is None:
            return self
        # Where the images are new to this object, the decision knows how often they decided for earlier code.
        count = self.test_sets.get(decision.test_digest, decision.earlier_decisions or 0) + 1
        return self.model_copy(update={"test_sets": self.test_sets | {decision.test_digest: count}})

    def to_bytes(self) -> bytes:
        """Return the content of the object."""
        content = self.model_dump(mode="json", exclude={"deployed"})
        decision = self.deployed.model_dump(mode="json") if self.deployed else {}
        # No two writers write the same, so that each can tell, after an answer that was lost, whether it was the one.
        return json.dumps(decision | content | {WRITTEN: uuid.uuid4().hex}, indent=2).encode()


def parse_state(data: bytes, token: str | None = None) -> State:
    """Return the state that was read with a token. It is not whole where earlier code wrote the decision only.

    Raises CorruptModel if it is damaged.
    """
    try:
        content: Any = json.loads(data)
        if not isinstance(content, dict):
            raise ValueError("it is no object")
        known = set(State.model_fields) - {"deployed", "token", "whole"}
        beside = {name: content.pop(name) for name in known & content.keys()}
        content.pop(WRITTEN, None)
        if not content and not beside:
            raise ValueError("it is empty")
        return State(deployed=content or None, token=token, whole=bool(beside), **beside)
    except (ValidationError, ValueError, RecursionError) as error:
        raise CorruptModel(
            f"{PRODUCTION} is damaged: {error}. Write the latest promotion of the audit trail in its place"
        ) from error
