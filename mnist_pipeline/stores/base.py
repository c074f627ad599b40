"""The meaning of a model store, once for all backends.

Layout of a store, beside its versions (`versions`):

    production.json         the decision that deployed what is deployed; replaced by compare-and-swap
    waiting.json            the last decision to deploy what a person has yet to approve
    decisions/<id>.json     every decision, never changed after: the audit trail
    test_sets/<id>.json     how often a set of test images has decided
"""

import uuid
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from mnist_pipeline.ml.manifest import PROMOTED, WAITING, Decision
from mnist_pipeline.stores.errors import (
    CorruptModel,
    ModelStoreError,
    NothingDeployed,
    ObjectChanged,
    ObjectMissing,
    PromotionConflict,
)
from mnist_pipeline.stores.versions import DIGEST_LENGTH, VersionStore

PRODUCTION = "production.json"
WAITING_DECISION = "waiting.json"
DECISIONS = "decisions/"
TEST_SETS = "test_sets/"


class _Count(BaseModel):
    """The number of decisions by a set of test images."""

    decisions: int = Field(ge=0)


class ModelStore(VersionStore):
    """Immutable model versions, the one that is deployed, and the trail of decisions.

    A backend adds the five primitives of `ObjectStore`.
    """

    def production(self) -> Decision | None:
        """Return the decision that deployed what is deployed; None if nothing ever was.

        Raises CorruptModel if it is damaged, or of an outcome that this code does not know.
        """
        current, _ = self._read_production()
        if current and current.outcome != PROMOTED:
            raise CorruptModel(
                f"{PRODUCTION} has the outcome {current.outcome!r}, which deploys nothing as far as this code knows: "
                "use the code that wrote it, or roll back to a version by its name"
            )
        return current

    def promote(self, decision: Decision) -> None:
        """Deploy `decision.version`, after verifying it, if `decision.replaces` is still what is deployed.

        Raises PromotionConflict if not, UnknownModel or CorruptModel if the version cannot be deployed.
        """
        if decision.outcome != PROMOTED:
            raise ValueError(f"only a decision to promote deploys, not {decision.outcome!r}")
        manifest, _ = self.load(decision.version)
        if manifest.weights_sha256 != decision.weights_sha256:
            raise CorruptModel(f"{decision.version} is not the model that was decided about: its weights differ")
        current, token = self._read_production()
        self._require_incumbent(decision, current)
        if current:  # a kill between the two writes below may have left it out
            self._file_again(current)
        data = decision.model_dump_json(indent=2).encode()
        try:
            if token is None:
                self._create(PRODUCTION, data)
            else:
                self._replace(PRODUCTION, data, token)
        except ObjectChanged:
            raise PromotionConflict("another deployment was made at the same moment") from None
        self._file_decision(decision)

    def record(self, decision: Decision) -> None:
        """Add a decision that deploys nothing to the audit trail.

        One that waits for approval takes the place of the one that waited; one that refuses what waits ends that.
        """
        if decision.outcome == PROMOTED:
            raise ValueError("a decision to promote is recorded by promote()")
        if decision.outcome == WAITING:
            self._require_incumbent(decision, self._read_production()[0])
            self.put(WAITING_DECISION, decision.model_dump_json(indent=2).encode())
        else:
            with suppress(CorruptModel):  # a damaged one cannot be approved anyway
                if (waiting := self.waiting()) and waiting.weights_sha256 == decision.weights_sha256:
                    self.delete_object(WAITING_DECISION)
        self._file_decision(decision)

    def waiting(self) -> Decision | None:
        """Return the decision that waits for approval; None if none does, or something else was deployed since."""
        try:
            data, _ = self.read_object(WAITING_DECISION)
        except ObjectMissing:
            return None
        decision, (current, _) = self._parse_decision(data, WAITING_DECISION), self._read_production()
        waits = decision.outcome == WAITING and decision.replaces == (current.id if current else None)
        return decision if waits else None

    def approve(self, version: str, reason: str, actor: str) -> Decision:
        """Deploy the version that waits for approval; `version` may be the beginning of its name.

        Raises ModelStoreError if it does not wait or there is no reason, PromotionConflict if something else was
        deployed since it was compared.
        """
        if not reason.strip():
            raise ModelStoreError("an approval needs a reason for the audit trail")
        name, waiting = self.resolve(version), self.waiting()
        if waiting is None or waiting.version != name:
            who = f"{waiting.version} does" if waiting else "no version does"
            raise ModelStoreError(
                f"{name} does not wait for approval; {who}. Something may have been deployed since it was compared: "
                "run deployment_job to decide again"
            )
        decision = waiting.model_copy(
            update=_identity() | {"outcome": PROMOTED, "strategy": "approval", "reason": reason, "actor": actor}
        )
        self.promote(decision)
        return decision

    def earlier_decisions(self, test_digest: str) -> int:
        """Return how often these test images have decided about a candidate."""
        try:
            data, _ = self.read_object(_test_set(test_digest))
        except ObjectMissing:
            return 0
        try:
            return _Count.model_validate_json(data).decisions
        except ValidationError as error:
            raise CorruptModel(f"{_test_set(test_digest)} is damaged; delete it to count anew: {error}") from error

    def count_decision(self, test_digest: str) -> None:
        """Count a decision by these test images."""

        def one_more() -> bytes:
            return _Count(decisions=self.earlier_decisions(test_digest) + 1).model_dump_json().encode()

        self.update(_test_set(test_digest), one_more)

    def decisions(self) -> list[Decision]:
        """Return the audit trail, newest first."""
        ids = {key.removeprefix(DECISIONS).removesuffix(".json") for key in self.list_objects(DECISIONS)}
        if (current := self._read_production()[0]) and current.id not in ids:
            self._file_again(current)  # the kill described in promote()
            ids.add(current.id)
        trail = []
        for decision_id in sorted(ids, reverse=True):
            data, _ = self.read_object(f"{DECISIONS}{decision_id}.json")
            trail.append(self._parse_decision(data, decision_id))
        return trail

    def rolled_back(self, weights_sha256: str) -> Decision | None:
        """Return the rollback that took these weights out of production; None if there is none or they came back."""
        trail = self.decisions()
        by_id = {decision.id: decision for decision in trail}
        for decision in trail:
            if decision.outcome != PROMOTED:
                continue
            if decision.weights_sha256 == weights_sha256:
                return None
            replaced = by_id.get(decision.replaces or "")
            if decision.strategy == "rollback" and replaced and replaced.weights_sha256 == weights_sha256:
                return decision
        return None

    def rollback(self, reason: str, actor: str, to: str | None = None) -> Decision:
        """Deploy an earlier version again: the one whose name begins with `to`, or what was deployed before.

        Raises NothingDeployed, or ModelStoreError if there is no earlier version or no reason.
        """
        if not reason.strip():
            raise ModelStoreError("a rollback needs a reason for the audit trail")
        current, _ = self._read_production()
        if current is None:
            raise NothingDeployed("nothing is deployed, so nothing can be rolled back")
        if to is None and current.strategy == "rollback":
            raise ModelStoreError(f"{current.version} was itself reached by a rollback: name the version to deploy")
        target = current.incumbent_version if to is None else self.resolve(to)
        if target is None:
            raise ModelStoreError(f"nothing was deployed before {current.version}")
        if target == current.version:
            raise ModelStoreError(f"{target} is deployed already")
        decision = new_decision(
            outcome=PROMOTED,
            strategy="rollback",
            reason=reason,
            version=target,
            weights_sha256=self.manifest(target).weights_sha256,
            incumbent=current,
            actor=actor,
        )
        self.promote(decision)
        return decision

    def prune(self, keep: int) -> list[str]:
        """Delete all but the `keep` newest versions and those in use; returns the deleted.

        In use are what is deployed, what it replaced, the reference, and what waits for approval.
        """
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        deleted = []
        for name in self.versions()[keep:]:
            current, _ = self._read_production()  # each time: a promotion may come in between
            waiting = self.waiting()
            if current and name in (current.version, current.incumbent_version, current.reference):
                continue
            if waiting and name == waiting.version:
                continue
            self.delete_version(name)
            deleted.append(name)
        return deleted

    def _read_production(self) -> tuple[Decision | None, str | None]:
        try:
            data, token = self.read_object(PRODUCTION)
        except ObjectMissing:
            return None, None
        return self._parse_decision(data, PRODUCTION), token

    def _parse_decision(self, data: bytes, key: str) -> Decision:
        try:
            return Decision.model_validate_json(data)
        except ValidationError as error:
            remedy = "; delete it, and let the gate decide anew" if key == WAITING_DECISION else ""
            raise CorruptModel(f"the decision {key} is damaged{remedy}: {error}") from error

    def _require_incumbent(self, decision: Decision, current: Decision | None) -> None:
        if (current.id if current else None) != decision.replaces:
            raise PromotionConflict(
                f"{current.version if current else 'nothing'} is deployed by now (decision "
                f"{current.id if current else None}), not what this decision set out from ({decision.replaces})"
            )

    def _file_again(self, decision: Decision) -> None:
        with suppress(ObjectChanged):  # it is there, perhaps as other code wrote it
            self._file_decision(decision)

    def _file_decision(self, decision: Decision) -> None:
        self._create(f"{DECISIONS}{decision.id}.json", decision.model_dump_json(indent=2).encode())


def new_decision(*, incumbent: Decision | None, **fields) -> Decision:
    """Return a decision made now, about what takes the place of `incumbent`."""
    return Decision(
        incumbent_version=incumbent.version if incumbent else None,
        replaces=incumbent.id if incumbent else None,
        **_identity(),
        **fields,
    )


def _identity() -> dict[str, Any]:
    """The id and the time of a decision made now."""
    now = datetime.now(UTC)
    return {"id": f"{now:%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:8]}", "decided_at": now}


def _test_set(test_digest: str) -> str:
    return f"{TEST_SETS}{test_digest[:DIGEST_LENGTH]}.json"
