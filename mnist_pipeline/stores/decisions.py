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
from mnist_pipeline.stores.versions import VersionStore

DECIDED = "decided/"
"""A prefix in the folder of a version: empty objects, each by the name of a decision about it."""


class DecisionStore(VersionStore):
    """Immutable model versions, the one that is deployed, and the trail of decisions."""

    def production(self) -> Decision | None:
        """Return the decision that deployed what is deployed; None if nothing ever was.

        Raises CorruptModel if it is damaged, or of an outcome that this code does not know.
        """
        deployed = self._read_state()[0].deployed
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
        state, whole = self._read_state()
        return state if whole else earlier.completed(self, state)

    def promote(self, decision: Decision, seen: State | None = None) -> None:
        """Deploy `decision.version`, after verifying it, if `decision.replaces` is still what is deployed.

        `seen` is the state that was decided by; it saves reading it again where it is still the same.
        Raises PromotionConflict if not, UnknownModel or CorruptModel if the version cannot be deployed.
        """
        if decision.outcome != PROMOTED:
            raise ValueError(f"only a decision to promote deploys, not {decision.outcome!r}")

        def deploy(state: State) -> State | None:
            if state.deployed_id == decision.id:
                return None  # the answer to the first attempt was lost
            self._require_incumbent(decision, state)
            # Each time after the state was read: prune may have announced and deleted the version since.
            if self.load(decision.version)[0].weights_sha256 != decision.weights_sha256:
                raise CorruptModel(f"{decision.version} is not the model that was decided about: its weights differ")
            if state.deployed:  # a kill after its own promotion may have left it out
                with suppress(ObjectChanged):
                    self.create_object(key_of(entry_name(state.deployed)), _content(state.deployed))
            return state.deploying(decision)

        self.change_state(deploy, seen)
        self._file(decision)

    def record(self, decision: Decision, seen: State | None = None) -> None:
        """Add a decision that deploys nothing to the audit trail.

        One that waits for approval takes the place of the one that waited; one that refuses what waits ends that.
        """
        if decision.outcome == PROMOTED:
            raise ValueError("a decision to promote is recorded by promote()")

        def note(state: State) -> State | None:
            if decision.outcome == WAITING:
                if state.waiting and state.waiting.id == decision.id:
                    return None  # recorded before
                self._require_incumbent(decision, state)
            after = state.recording(decision)
            return None if after == state else after

        self.change_state(note, seen)
        self._file(decision)

    def earlier_decisions(self, state: State, test_digest: str) -> int:
        """Return how often the test images of a content digest have decided about a candidate."""
        count = state.test_sets.get(test_digest)
        return earlier.counted(self, test_digest) if count is None else count

    def decisions(self, limit: int | None = None) -> list[Entry]:
        """Return the newest `limit` entries of the audit trail, or all, newest first, also those that are damaged."""
        return list(read_trail(self, self._read_state()[0].deployed, limit))

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
        for entry in earlier_entries(self) if earlier_ones is None else earlier_ones:
            if isinstance(entry, Decision) and entry.version == version:
                yield entry

    def change_state(self, change: Callable[[State], State | None], seen: State | None = None) -> None:
        """Replace the state by `change` of it, read anew as often as another one changed it; None changes nothing.

        It begins with `seen`, where that is given.
        """
        prove_conditional_writes(self)
        while True:
            state = seen or self.state()
            if (after := change(state)) is None:
                return
            with suppress(ObjectChanged):
                if state.token is None:
                    self._create(PRODUCTION, after.to_bytes())
                else:
                    self._replace(PRODUCTION, after.to_bytes(), state.token)
                return
            seen = None

    def _read_state(self) -> tuple[State, bool]:
        """The state, and whether it is whole, as this code writes it."""
        try:
            return parse_state(*self.read_object(PRODUCTION))
        except ObjectMissing:
            return State(), False

    def _require_incumbent(self, decision: Decision, state: State) -> None:
        if decision.version in state.pruning:
            raise UnknownModel(f"{decision.version} is about to be deleted by prune, and not deployed any more")
        if state.deployed_id != decision.replaces:
            raise PromotionConflict(
                f"{state.deployed.version if state.deployed else 'nothing'} is deployed by now (decision "
                f"{state.deployed_id}), not what this decision set out from ({decision.replaces})"
            )

    def _file(self, decision: Decision) -> None:
        """Write a decision into the trail, and its name beside the version it is about."""
        name = entry_name(decision)
        self._create(key_of(name), _content(decision))
        with suppress(ObjectChanged):
            self.create_object(f"{decision.version}/{DECIDED}{name}", b"")


def new_decision(*, incumbent: Decision | None, outcome: str, **fields) -> Decision:
    """Return a decision made now, about what takes the place of `incumbent`."""
    number = (incumbent.sequence or 0) if incumbent else 0
    return Decision(
        outcome=outcome,
        incumbent_version=incumbent.version if incumbent else None,
        replaces=incumbent.id if incumbent else None,
        sequence=number + 1 if outcome == PROMOTED else number,
        **identity(),
        **fields,
    )


def identity() -> dict[str, Any]:
    """Return the id and the time of a decision made now."""
    now = datetime.now(UTC)
    return {"id": f"{now:%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:8]}", "decided_at": now}


def _content(decision: Decision) -> bytes:
    return decision.model_dump_json(indent=2).encode()
