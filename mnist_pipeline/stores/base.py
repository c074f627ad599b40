"""The meaning of a model store, once for all backends.

Layout of a store:

    <version>/weights.safetensors    written first
    <version>/manifest.json          written last: without it there is no version
    production.json                  the decision that deployed what is deployed; replaced by compare-and-swap
    decisions/<id>.json              every decision, never changed after: the audit trail
"""

import hashlib
import re
import uuid
from contextlib import suppress
from datetime import UTC, datetime

from pydantic import ValidationError

from mnist_pipeline.ml.manifest import PROMOTED, Decision, ModelManifest, TrainingRecord
from mnist_pipeline.ml.records import DriftReference, EpochMetrics
from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.stores.errors import (
    CorruptModel,
    ModelStoreError,
    NothingDeployed,
    ObjectChanged,
    ObjectMissing,
    PromotionConflict,
    UnknownModel,
)
from mnist_pipeline.stores.objects import ObjectStore
from mnist_pipeline.task.spec import TaskSpec

WEIGHTS = "weights.safetensors"
MANIFEST = "manifest.json"
PRODUCTION = "production.json"
DECISIONS = "decisions/"

VERSION_NAME = re.compile(r"[A-Za-z0-9_-]+?_(?P<time>\d{8}T\d{6}\.\d{3}Z)_[A-Za-z0-9._-]+")
"""Names also come from people: nothing that could lead out of the store."""


class ModelStore(ObjectStore):
    """Immutable model versions, the one that is deployed, and the trail of decisions.

    A backend adds the five primitives of `ObjectStore`.
    """

    def save(
        self,
        weights: bytes,
        *,
        task: TaskSpec,
        settings: TrainingSettings,
        history: list[EpochMetrics],
        best_epoch: int,
        data_version: str,
        code_version: str,
        run_id: str,
        drift_reference: DriftReference | None = None,
    ) -> ModelManifest:
        """Store a new version. A kill on the way leaves no version behind."""
        while True:
            created_at = datetime.now(UTC)
            accuracy = history[best_epoch - 1].validation_accuracy
            manifest = ModelManifest(
                name=version_name(created_at, settings, accuracy),
                weights_sha256=hashlib.sha256(weights).hexdigest(),
                task=task,
                network=settings.network(),
                training=TrainingRecord(
                    settings=settings.model_dump(),
                    history=[metrics.model_dump() for metrics in history],
                    best_epoch=best_epoch,
                    data_version=data_version,
                    code_version=code_version,
                    run_id=run_id,
                    created_at=created_at,
                    drift_reference=drift_reference,
                ),
            )
            try:  # creating the weights claims the name
                self._create(f"{manifest.name}/{WEIGHTS}", weights, retry_is_ours=False)
            except ObjectChanged:
                continue  # saved in the same millisecond by another process: take the next one
            self._create(f"{manifest.name}/{MANIFEST}", manifest.model_dump_json(indent=2).encode())
            return manifest

    def versions(self) -> list[str]:
        """Return the names of all complete versions, newest first."""
        names = (key.removesuffix(f"/{MANIFEST}") for key in self.list_objects() if key.endswith(f"/{MANIFEST}"))
        found = [match for name in names if (match := VERSION_NAME.fullmatch(name))]
        return [match[0] for match in sorted(found, key=lambda match: (match["time"], match[0]), reverse=True)]

    def manifest(self, name: str) -> ModelManifest:
        """Return the manifest of a version. Raises UnknownModel or CorruptModel."""
        if not VERSION_NAME.fullmatch(name):
            raise UnknownModel(f"{name!r} is not the name of a model version. {self._known_versions()}")
        try:
            data, _ = self.read_object(f"{name}/{MANIFEST}")
        except ObjectMissing:
            raise UnknownModel(f"there is no model version {name!r}. {self._known_versions()}") from None
        try:
            manifest = ModelManifest.model_validate_json(data)
        except ValidationError as error:
            raise CorruptModel(
                f"the manifest of {name} is damaged, or of another network or task than this code has: {error}"
            ) from error
        if manifest.name != name:
            raise CorruptModel(f"the manifest of {name} says that it is {manifest.name}")
        return manifest

    def load(self, name: str) -> tuple[ModelManifest, bytes]:
        """Return manifest and weights of a version, the weights' digest verified.

        Raises UnknownModel, or CorruptModel if the weights are missing or not those of the manifest.
        """
        manifest = self.manifest(name)
        try:
            weights, _ = self.read_object(f"{name}/{WEIGHTS}")
        except ObjectMissing:
            raise CorruptModel(
                f"{name} has a manifest but no {WEIGHTS}: restore the file or delete the version"
            ) from None
        if (digest := hashlib.sha256(weights).hexdigest()) != manifest.weights_sha256:
            raise CorruptModel(
                f"{WEIGHTS} of {name} has SHA-256 {digest}, but its manifest says {manifest.weights_sha256}: "
                "the file was changed or damaged, and is not used"
            )
        return manifest, weights

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
        if (current.id if current else None) != decision.replaces:
            raise PromotionConflict(
                f"{current.version if current else 'nothing'} is deployed by now (decision "
                f"{current.id if current else None}), not what this decision set out from ({decision.replaces})"
            )
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
        """Add a decision that deploys nothing to the audit trail."""
        if decision.outcome == PROMOTED:
            raise ValueError("a decision to promote is recorded by promote()")
        self._file_decision(decision)

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
        """Deploy an earlier version again: `to`, or what was deployed before the current one.

        Raises NothingDeployed, or ModelStoreError if there is no earlier version or no reason.
        """
        if not reason.strip():
            raise ModelStoreError("a rollback needs a reason for the audit trail")
        current, _ = self._read_production()
        if current is None:
            raise NothingDeployed("nothing is deployed, so nothing can be rolled back")
        if to is None and current.strategy == "rollback":
            raise ModelStoreError(f"{current.version} was itself reached by a rollback: name the version to deploy")
        target = to or current.incumbent_version
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
        """Delete all but the `keep` newest versions, what is deployed and what it replaced; returns the deleted."""
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        deleted = []
        for name in self.versions()[keep:]:
            current, _ = self._read_production()  # each time: a promotion may come in between
            if current and name in (current.version, current.incumbent_version):
                continue
            self.delete_object(f"{name}/{MANIFEST}")  # first, so that no version without weights is ever listed
            self.delete_object(f"{name}/{WEIGHTS}")
            deleted.append(name)
        return deleted

    def _known_versions(self) -> str:
        versions = self.versions()
        return "The store has: " + ", ".join(versions[:10]) if versions else "The store has no version yet."

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
            raise CorruptModel(f"the decision {key} is damaged: {error}") from error

    def _file_again(self, decision: Decision) -> None:
        with suppress(ObjectChanged):  # it is there, perhaps as other code wrote it
            self._file_decision(decision)

    def _file_decision(self, decision: Decision) -> None:
        self._create(f"{DECISIONS}{decision.id}.json", decision.model_dump_json(indent=2).encode())


def new_decision(*, incumbent: Decision | None, **fields) -> Decision:
    """Return a decision made now, about what takes the place of `incumbent`."""
    now = datetime.now(UTC)
    return Decision(
        id=f"{now:%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:8]}",
        decided_at=now,
        incumbent_version=incumbent.version if incumbent else None,
        replaces=incumbent.id if incumbent else None,
        **fields,
    )


def version_name(created_at: datetime, settings: TrainingSettings, accuracy: float) -> str:
    """Return a name that tells one training from another: family, time, network, recipe, validation accuracy."""
    time = f"{created_at:%Y%m%dT%H%M%S}.{created_at.microsecond // 1000:03d}Z"
    return f"{settings.FAMILY}_{time}_{settings.network_label}_{settings.recipe_label}_acc{accuracy:.4f}"
