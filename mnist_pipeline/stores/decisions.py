"""The deployment, and the decisions that led there.

Layout of a store, beside its versions (`versions`):

    production.json     what is deployed, and what a next decision has to know; replaced by compare-and-swap (`state`)
    decisions/<...>     every decision, never changed after: the audit trail (`trail`)
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from mnist_pipeline.ml.manifest import PROMOTED, WAITING, Decision
from mnist_pipeline.stores import earlier
from mnist_pipeline.stores.errors import (
    CorruptModel,
    ObjectChanged,
    ObjectMissing,
    PromotionConflict,
    UnknownModel,
)
from mnist_pipeline.stores.objects import prove_conditional_writes
from mnist_pipeline.stores.state import PRODUCTION, State, parse_state
from mnist_pipeline.stores.trail import Entry, earlier_entries, entry_name, key_of, read_entry, read_trail
from mnist_pipeline.stores.versions import VersionStore, time_in

DECIDED = "decided/"
"""A prefix in the folder of a version: empty objects, each by the name of a decision about it."""


class DecisionStore(VersionStore):
    """Immutable model versions, the one that is deployed, and the trail of decisions."""

    def production(self) -> Decision | None:
        """Return the decision that deployed what is deployed; None if nothing ever was.

        Raises CorruptModel if it is damaged, or of an outcome that this code does not know.
        """
        deployed = self._read_state().deployed
        if deployed and deployed.outcome != PROMOTED:
            raise CorruptModel(
                f"{PRODUCTION} has the outcome {deployed.outcome!r}, which deploys nothing as far as this code knows: "
                "use the code that wrote it, or roll back to a version by its name"
            )
        return deployed

    def state(self) -> State:
        """Return what is deployed and all that a next decision has to know; a request, whatever happened before.

        Raises CorruptModel if it is damaged.
        """
        state = self._read_state()
        return state if state.whole else earlier.completed(self, state)

    def promote(self, decision: Decision, seen: State | None = None) -> None:
        """Deploy `decision.version`, after verifying it, if `decision.replaces` is still what is deployed.

        `seen` is the state that was decided by; it saves reading it again where it is still the same.
        Raises PromotionConflict if not, UnknownModel or CorruptModel if the version cannot be deployed.
        """
        if decision.outcome != PROMOTED:
            raise ValueError(f"only a decision to promote deploys, not {decision.outcome!r}")
        _filed(decision)  # what could not be written into the trail must not be deployed

        def deploy(state: State) -> State | None:
            if state.deployed_id == decision.id:
                return None  # the answer to the first attempt was lost
            try:
                self._require_incumbent(decision, state)
            except PromotionConflict:
                if read_entry(self, entry_name(decision)) is None:
                    raise
                return None  # it was lost, and another one was deployed since, who filed what it replaced
            if decision.strategy == "approval" and (not state.waiting or state.waiting.version != decision.version):
                raise PromotionConflict(f"{decision.version} does not wait for approval any more: decide again")
            # Each time after the state was read: prune may have announced and deleted the version since.
            if not self.load_onnx(decision.version)[0].digests.same(decision.digests):
                raise CorruptModel(f"{decision.version} is not the model that was decided about: its files differ")
            if state.deployed:
                self._file_again(state.deployed)
            return state.deploying(decision)

        self.change_state(deploy, seen)
        self._file(decision)

    def record(self, decision: Decision, seen: State | None = None) -> None:
        """Add a decision that deploys nothing to the audit trail.

        One that waits for approval takes the place of the one that waited; one that refuses what waits ends that.
        """
        if decision.outcome == PROMOTED:
            raise ValueError("a decision to promote is recorded by promote()")

        state = seen or self.state()
        if decision.outcome == WAITING and not _waits(state, decision):
            self._require_incumbent(decision, state)
        self._file(decision)  # first: a kill in between must not keep it out of the trail

        def note(state: State) -> State | None:
            if decision.outcome == WAITING:
                if _waits(state, decision):
                    return None  # recorded before
                self._require_incumbent(decision, state)
            after = state.recording(decision)
            return None if after == state and state.whole else after

        self.change_state(note, state)

    def earlier_decisions(self, state: State, test_digest: str) -> int:
        """Return how often the test images of a content digest have decided about a candidate."""
        count = state.test_sets.get(test_digest)
        return earlier.counted(self, test_digest) if count is None else count

    def decisions(self, limit: int | None = None) -> list[Entry]:
        """Return the newest `limit` entries of the audit trail, or all, newest first, also those that are damaged."""
        return list(read_trail(self, self._read_state().deployed, limit))

    def decisions_about(
        self, version: str, files: list[str] | None = None, earlier_ones: list[Entry] | None = None
    ) -> Iterator[Decision]:
        """Yield the decisions about a version that can be read, newest first.

        They are found by the names of the files in its folder (`files`, listed where None); those of earlier code
        (`earlier_ones`, read where None) are all looked through.
        """
        if files is None:
            files = [key.removeprefix(f"{version}/") for key in self.list_objects(f"{version}/{DECIDED}")]
        for name in sorted(file.removeprefix(DECIDED) for file in files if file.startswith(DECIDED)):
            if isinstance(entry := read_entry(self, name), Decision):
                yield entry
        for entry in earlier_entries(self, time_in(version)) if earlier_ones is None else earlier_ones:
            if isinstance(entry, Decision) and entry.version == version:
                yield entry

    def change_state(self, change: Callable[[State], State | None], seen: State | None = None) -> State:
        """Replace the state by `change` of it, read anew as often as another one changed it; returns what it is then.

        None changes nothing. It begins with `seen`, where that is given.
        """
        prove_conditional_writes(self)
        while True:
            state = seen or self.state()
            if (after := change(state)) is None:
                return state
            with suppress(ObjectChanged):
                if state.token is None:
                    self._create(PRODUCTION, after.to_bytes())
                else:
                    self._replace(PRODUCTION, after.to_bytes(), state.token)
                return after
            seen = None

    def _read_state(self) -> State:
        try:
            return parse_state(*self.read_object(PRODUCTION))
        except ObjectMissing:
            return State(whole=False)

    def _require_incumbent(self, decision: Decision, state: State) -> None:
        if decision.version in state.pruning:
            raise UnknownModel(f"{decision.version} is about to be deleted by prune, and not deployed any more")
        if state.deployed_id != decision.replaces:
            raise PromotionConflict(
                f"{state.deployed.version if state.deployed else 'nothing'} is deployed by now (decision "
                f"{state.deployed_id}), not what this decision set out from ({decision.replaces})"
            )

    def _file(self, decision: Decision) -> None:
        """Write the name of a decision beside the version it is about, and then the decision into the trail."""
        for key, data in _filed(decision):
            with suppress(ObjectChanged):  # it is there, perhaps as other code wrote it
                self.create_object(key, data)

    def _file_again(self, decision: Decision) -> None:
        """File what is deployed, which a kill after its promotion may have kept out of the trail."""
        marker, entry = _filed(decision)
        with suppress(ObjectChanged):  # it is there, and so is the marker, which comes first
            self.create_object(*entry)
            self.create_object(*marker)


def _filed(decision: Decision) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    """Keys and contents of the marker of a decision and of its entry in the trail."""
    name = entry_name(decision)
    entry = decision.model_dump_json(indent=2).encode()
    return (f"{decision.version}/{DECIDED}{name}", b""), (key_of(name), entry)


def _waits(state: State, decision: Decision) -> bool:
    return state.waiting is not None and state.waiting.id == decision.id


def new_decision(*, incumbent: Decision | None, outcome: str, reason: str, actor: str, **fields) -> Decision:
    """Return a decision made now, about what takes the place of `incumbent`."""
    number = (incumbent.sequence or 0) if incumbent else 0
    return Decision(
        outcome=outcome,
        reason=storable(reason),
        actor=storable(actor),
        incumbent_version=incumbent.version if incumbent else None,
        replaces=incumbent.id if incumbent else None,
        sequence=number + 1 if outcome == PROMOTED else number,
        **identity(),
        **fields,
    )


def storable(text: str) -> str:
    """Return text from a command line as it can be stored: bytes that are not UTF-8 are written out."""
    return text.encode(errors="backslashreplace").decode()


def identity() -> dict[str, Any]:
    """Return the id and the time of a decision made now."""
    now = datetime.now(UTC)
    return {"id": f"{now:%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:8]}", "decided_at": now}
