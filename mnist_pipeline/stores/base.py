"""The meaning of a model store, once for all backends: what people do with it, over its versions and decisions."""

import logging
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from pydantic import ValidationError

from mnist_pipeline.ml.manifest import PROMOTED, Decision
from mnist_pipeline.ml.records import Digests
from mnist_pipeline.stores.datasets import SPLIT_RECORDS, SPLITS, delete_unused, digests_of
from mnist_pipeline.stores.decisions import DecisionStore, identity, new_decision, storable
from mnist_pipeline.stores.errors import CorruptModel, ModelStoreError, NothingDeployed, ObjectMissing, UnknownModel
from mnist_pipeline.stores.objects import EXPERIMENTS, delete_old_proofs, time_text
from mnist_pipeline.stores.state import State
from mnist_pipeline.stores.versions import MANIFEST, complete_versions, entered_at, newest_first

log = logging.getLogger(__name__)

ORPHANS_OLDER_THAN = timedelta(days=1)
"""Nobody takes a day to save a version: what has no manifest by then never will."""


LONGEST = timedelta(days=36_500)
"""A time before which no store has anything."""


class Pruned(NamedTuple):
    """The names of what was deleted."""

    versions: list[str]
    orphans: list[str]
    """Versions that were never complete, and unfinished files."""
    data: list[str]
    """Digests of images that no version needs any more."""


class ModelStore(DecisionStore):
    """Immutable model versions, the one that is deployed, and the trail of decisions.

    A backend adds the five primitives of `ObjectStore`, and its address.
    """

    def waiting(self) -> Decision | None:
        """Return the decision that waits for approval; None if none does."""
        return self.state().waiting

    def rolled_back(self, model: Digests) -> str | None:
        """Return the reason for the rollback that took a model out of production; None if it may be there."""
        return self.state().rolled_back_because(model)

    def approve(self, version: str, reason: str, actor: str) -> Decision:
        """Deploy the version that waits for approval; `version` may be the beginning of its name.

        Raises ModelStoreError if it does not wait or there is no reason, PromotionConflict if something else was
        deployed since it was compared.
        """
        if not reason.strip():
            raise ModelStoreError("an approval needs a reason for the audit trail")
        name, state = self.resolve(version), self.state()
        if state.waiting is None or state.waiting.version != name:
            who = f"{state.waiting.version} does" if state.waiting else "no version does"
            raise ModelStoreError(
                f"{name} does not wait for approval; {who}. Something may have been deployed since it was compared: "
                "run deployment_job to decide again"
            )
        decision = state.waiting.model_copy(
            update=identity()
            | {"outcome": PROMOTED, "strategy": "approval", "reason": storable(reason), "actor": storable(actor)}
            | {"sequence": state.sequence + 1}
        )
        self.promote(decision)
        return decision

    def rollback(self, reason: str, actor: str, to: str | None = None) -> Decision:
        """Deploy an earlier version again: the one whose name begins with `to`, or what was deployed before.

        Raises NothingDeployed, or ModelStoreError if there is no earlier version or no reason.
        """
        if not reason.strip():
            raise ModelStoreError("a rollback needs a reason for the audit trail")
        current = self.state().deployed
        if current is None:
            raise NothingDeployed("nothing is deployed, so nothing can be rolled back")
        if to is None and current.strategy == "rollback":
            raise ModelStoreError(f"{current.version} was itself reached by a rollback: name the version to deploy")
        target = current.incumbent_version if to is None else self.resolve(to)
        if target is None:
            raise ModelStoreError(f"nothing was deployed before {current.version}")
        if target == current.version:
            raise ModelStoreError(f"{target} is deployed already")
        manifest, _ = self.load_onnx(target)
        measured = next((found for found in self.decisions_about(target) if found.test_accuracy is not None), None)
        decision = new_decision(
            outcome=PROMOTED,
            strategy="rollback",
            reason=reason,
            version=target,
            weights_sha256=manifest.weights_sha256,
            onnx_sha256=manifest.onnx_sha256,
            test_accuracy=measured.test_accuracy if measured else None,
            test_digest=measured.test_digest if measured else None,
            incumbent=current,
            actor=actor,
        )
        self.promote(decision)
        return decision

    def prune(self, keep: int, orphans_older_than: timedelta = ORPHANS_OLDER_THAN) -> Pruned:
        """Delete all but the `keep` newest versions and those in use, and what killed saves left before that time.

        In use are what is deployed, what it replaced, the reference, and what waits for approval. The names are
        announced in the state of the store first: from then on nothing deploys them, and a promotion that is under way
        looks again. What a killed prune announced is deleted by the next one. Images that no version and no sweep needs
        any more go, too. Raises ValueError for `keep` below 1 or a negative time.
        """
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        if orphans_older_than < timedelta(0):
            raise ValueError(f"orphans_older_than must not be negative, but is {orphans_older_than}")
        before = datetime.now(UTC) - min(orphans_older_than, LONGEST)
        found = self.version_files()
        versions = sorted(complete_versions(found), key=lambda name: entered_at(name, found[name]), reverse=True)

        def announce(state: State) -> State | None:
            doomed = [name for name in versions[keep:] if name not in state.in_use]
            announced = tuple(sorted({*state.pruning, *doomed}))
            return None if announced == state.pruning else state.model_copy(update={"pruning": announced})

        state = self.change_state(announce)
        announced = state.pruning
        for name in announced:
            self.delete_version(name)
        orphans = [
            name
            for name, files in found.items()
            if MANIFEST not in files and entered_at(name, files) <= time_text(before) and name not in state.in_use
        ]
        for name in orphans:
            self.delete_version(name)

        def finish(state: State) -> State | None:
            left = tuple(name for name in state.pruning if name not in announced)
            return None if left == state.pruning else state.model_copy(update={"pruning": left})

        self.change_state(finish)
        delete_old_proofs(self, before)
        unfinished = sorted({*orphans} - {*announced}) + sorted(self.delete_unfinished(before))
        try:
            data = delete_unused(self, self._needed_data, before)
        except (CorruptModel, ValidationError) as error:
            log.warning("no images are deleted, since it cannot be told which are needed: %s", error)
            data = []
        return Pruned(newest_first(announced), unfinished, data)

    def _needed_data(self) -> set[str]:
        """Return the digests of the images that versions and sweeps name. Raises CorruptModel or ValidationError."""
        needed: set[str] = set()
        for name in self.versions():
            with suppress(UnknownModel):  # pruned since it was listed
                needed |= digests_of(self.manifest(name).training.splits)
        for key in [key for key in self.list_objects(EXPERIMENTS) if key.endswith(f"/{SPLITS}")]:
            with suppress(ObjectMissing):
                needed |= digests_of(SPLIT_RECORDS.validate_json(self.read_object(key)[0]))
        return needed
