"""Stores as earlier code left them: the pieces of today's `production.json` were objects of their own.

waiting.json          the candidate that waits for approval
decisions/<id>.json   what was rolled back stood in the audit trail only
test_sets/<id>.json   how often a set of test images has decided
"""

import json
import logging
from collections.abc import Iterator

from pydantic import BaseModel, Field, ValidationError

from mnist_pipeline.ml.manifest import WAITING, Decision
from mnist_pipeline.stores.errors import CorruptModel, ObjectMissing
from mnist_pipeline.stores.objects import ObjectStore
from mnist_pipeline.stores.state import State
from mnist_pipeline.stores.trail import newest_number, require_promotion
from mnist_pipeline.stores.versions import DIGEST_LENGTH

log = logging.getLogger(__name__)

WAITING_DECISION = "waiting.json"
TEST_SETS = "test_sets/"


class _Count(BaseModel):
    decisions: int = Field(ge=0)


def completed(store: ObjectStore, state: State) -> State:
    """Return the whole state of a store whose `production.json` has the decision only, or is not there.

    Raises CorruptModel if a promotion of the trail is damaged: it may have been a rollback.
    """
    deployed = state.deployed
    if deployed and deployed.sequence is None and (number := newest_number(store)):
        # Earlier code has deployed over a trail with numbers: it comes after them.
        deployed = deployed.model_copy(update={"sequence": number + 1})
    rolled_back: dict[str, str] = {}
    newer: Decision | None = None
    deployed_since = set()
    for decision in _chain(store, deployed):
        if newer and newer.strategy == "rollback" and decision.weights_sha256 not in deployed_since:
            rolled_back.setdefault(decision.weights_sha256, newer.reason)
        deployed_since.add(decision.weights_sha256)
        newer = decision
    return state.model_copy(
        update={"deployed": deployed, "waiting": _waiting(store, deployed), "rolled_back": rolled_back}
    )


def counted(store: ObjectStore, test_digest: str) -> int:
    """Return how often a set of test images had decided by the time when that was counted in an object of its own."""
    key = f"{TEST_SETS}{test_digest[:DIGEST_LENGTH]}.json"
    try:
        data, _ = store.read_object(key)
        return _Count.model_validate_json(data).decisions
    except ObjectMissing:
        return 0
    except ValidationError as error:
        raise CorruptModel(f"{key} is damaged; delete it to count anew: {error}") from error


def _chain(store: ObjectStore, deployed: Decision | None) -> Iterator[Decision]:
    """The promotions, newest first, from one to the one it replaced: not by anybody's clock."""
    decision, seen = deployed, set[str]()
    while decision:
        if decision.id in seen:
            raise CorruptModel(f"the decision {decision.id} replaces itself in the end: the audit trail is damaged")
        seen.add(decision.id)
        yield decision
        before = require_promotion(store, decision.replaces) if decision.replaces else None
        if decision.replaces and not before:
            log.warning("the decision %s is not in the audit trail: earlier rollbacks are not known", decision.replaces)
        decision = before


def _waiting(store: ObjectStore, deployed: Decision | None) -> Decision | None:
    """The decision that waits, unless something else was deployed since."""
    try:
        data, _ = store.read_object(WAITING_DECISION)
        decision = Decision.model_validate(json.loads(data))
    except ObjectMissing:
        return None
    except (ValidationError, ValueError, RecursionError) as error:
        log.warning("%s is damaged and counts for nothing: let the gate decide anew. %s", WAITING_DECISION, error)
        return None
    waits = decision.outcome == WAITING and decision.replaces == (deployed.id if deployed else None)
    return decision if waits else None
