"""The versions of a model store: immutable, complete or not there.

Layout, as far as versions are concerned:

    <version>/weights.safetensors          to train on from; written first
    <version>/model.onnx                   what is scored and served
    <version>/manifest.json                written last: without it there is no version
    <version>/onnx.json                    only in versions from before there was model.onnx, see `exports`
    <version>/predicted-<images>.labels    the labels it gave those images, so that they are not predicted again
    <version>/card.html, compared/<version>.html    pages, made anew at any time, see `experiments`
    <version>/entered/<time>               empty; of a trial that became a candidate, see `experiments`
    <version>/decided/<decision>           empty; its name is that of a decision about it, see `trail`
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from pydantic import ValidationError

from mnist_pipeline.ml.manifest import ModelManifest, Provenance, SplitRecord, TrainingRecord
from mnist_pipeline.ml.records import CoverageCurve, DriftReference, EpochMetrics
from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.stores.errors import CorruptModel, ObjectChanged, ObjectMissing, UnknownModel
from mnist_pipeline.stores.exports import ONNX, export_version, recorded_digest
from mnist_pipeline.stores.objects import DATA, EXPERIMENTS, ObjectStore, time_text
from mnist_pipeline.task.spec import TaskSpec

WEIGHTS = "weights.safetensors"
MANIFEST = "manifest.json"
DIGEST_LENGTH = 32
"""The beginning of a SHA-256 that names a set of images."""

DECISIONS = "decisions/"
"""The prefix of the audit trail."""

PASSED_OVER = (DATA, DECISIONS, EXPERIMENTS)
"""The prefixes of what stands between versions in a listing, in order: a listing must not grow with them."""

CARD, COMPARED = "card.html", "compared/"
"""The card of a version, and the prefix of its comparisons; see `experiments`."""

ENTERED = "entered/"
"""A prefix in the folder of a version that was trained elsewhere: an empty object by the time when it came."""

VERSION_NAME = re.compile(r"[A-Za-z0-9_-]+?_(?P<time>\d{8}T\d{6}\.\d{3}Z)_[A-Za-z0-9._-]+")
"""Names also come from people: nothing that could lead out of the store."""


class VersionStore(ObjectStore):
    """Immutable model versions."""

    def save(
        self,
        weights: bytes,
        onnx: bytes,
        *,
        task: TaskSpec,
        settings: TrainingSettings,
        history: list[EpochMetrics],
        best_epoch: int,
        data_version: str,
        code_version: str,
        run_id: str,
        drift_reference: DriftReference | None = None,
        temperature: float | None = None,
        coverage: CoverageCurve | None = None,
        splits: dict[str, SplitRecord] | None = None,
        provenance: Provenance | None = None,
        trial: str | None = None,
    ) -> ModelManifest:
        """Store a new version: the weights, and the file `model.onnx` made of them. A kill leaves no version behind."""
        while True:
            created_at = datetime.now(UTC)
            accuracy = history[best_epoch - 1].validation_accuracy
            manifest = ModelManifest(
                name=version_name(created_at, task.name, settings, accuracy),
                weights_sha256=_digest(weights),
                onnx_sha256=_digest(onnx),
                task=task,
                network=settings.architecture(),
                training=TrainingRecord(
                    settings=settings.model_dump(),
                    history=[metrics.model_dump() for metrics in history],
                    best_epoch=best_epoch,
                    data_version=data_version,
                    code_version=code_version,
                    run_id=run_id,
                    created_at=created_at,
                    drift_reference=drift_reference,
                    temperature=temperature,
                    coverage=coverage,
                    splits=splits or {},
                    provenance=provenance,
                    trial=trial,
                ),
            )
            try:  # creating the weights claims the name
                self._create(f"{manifest.name}/{WEIGHTS}", weights, retry_is_ours=False)
            except ObjectChanged:
                continue  # saved in the same millisecond by another process: take the next one
            self._create(f"{manifest.name}/{ONNX}", onnx)
            self._create(f"{manifest.name}/{MANIFEST}", manifest.model_dump_json(indent=2).encode())
            return manifest

    def versions(self) -> list[str]:
        """Return the names of all complete versions, newest first."""
        return complete_versions(self.version_files())

    def version_files(self) -> dict[str, list[str]]:
        """Return the names of the files of each version, also of those that are not complete.

        The listing costs a request for each thousand files; images, the audit trail and experiments are passed over, so
        that the cost does not grow with them.
        """
        found: dict[str, list[str]] = {}
        for key in self._keys_of_versions():
            name, _, file = key.partition("/")
            if VERSION_NAME.fullmatch(name):
                found.setdefault(name, []).append(file)
        return found

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
        return manifest, self._verified(name, WEIGHTS, manifest.weights_sha256)

    def load_onnx(self, name: str) -> tuple[ModelManifest, bytes]:
        """Return the manifest of a version, with the digest of `model.onnx`, and that file, its digest verified.

        A version of before there was that file gets it now. Raises UnknownModel, CorruptModel if the file is missing or
        another one, NotExported where it would have to be made and cannot be.
        """
        manifest = self.manifest(name)
        if (digest := recorded_digest(self, manifest)) is None:
            digest = export_version(self, manifest, self._verified(name, WEIGHTS, manifest.weights_sha256))
        return manifest.model_copy(update={"onnx_sha256": digest}), self._verified(name, ONNX, digest)

    def verify(self, name: str) -> tuple[ModelManifest, dict[str, bytes]]:
        """Return the manifest of a version, and its verified files by name. Raises UnknownModel or CorruptModel."""
        manifest, weights = self.load(name)
        files = {WEIGHTS: weights}
        if digest := recorded_digest(self, manifest):
            files[ONNX] = self._verified(name, ONNX, digest)
        return manifest, files

    def _verified(self, name: str, file: str, expected: str) -> bytes:
        try:
            content, _ = self.read_object(f"{name}/{file}")
        except ObjectMissing:
            raise CorruptModel(f"{name} has a manifest but no {file}: restore the file or delete the version") from None
        if (digest := _digest(content)) != expected:
            raise CorruptModel(
                f"{file} of {name} has SHA-256 {digest}, but {expected} is recorded: the file was changed or damaged, "
                "and is not used"
            )
        return content

    def resolve(self, name: str) -> str:
        """Return the version that `name` is, or the only one that begins with it. Raises UnknownModel."""
        versions = self.versions()
        found = [version for version in versions if version.startswith(name)] if name else []
        if name in found:
            return name
        if len(found) > 1:
            raise UnknownModel(f"{name!r} is the beginning of several versions: {', '.join(found[:10])}")
        if not found:
            raise UnknownModel(f"there is no model version {name!r}. {self._known_versions()}")
        return found[0]

    def delete_version(self, name: str) -> None:
        """Delete a version with all that belongs to it. Raises UnknownModel for what is no name of a version."""
        if not VERSION_NAME.fullmatch(name):
            raise UnknownModel(f"{name!r} is not the name of a model version, and nothing is deleted")
        self.delete_object(f"{name}/{MANIFEST}")  # first, so that no version without weights is ever listed
        for key in list(self.list_objects(f"{name}/")):
            self.delete_object(key)

    def _keys_of_versions(self) -> Iterator[str]:
        passed: str | None = ""
        while passed is not None:
            after, passed = passed, None
            for key in self.list_objects(after=after):
                if key.startswith(PASSED_OVER):
                    passed = f"{key.partition('/')[0]}0"  # in ASCII 0 follows the slash
                    break
                yield key

    def _known_versions(self) -> str:
        versions = self.versions()
        return "The store has: " + ", ".join(versions[:10]) if versions else "The store has no version yet."


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def complete_versions(found: dict[str, list[str]]) -> list[str]:
    """Return the names of those that have a manifest, of what `VersionStore.version_files` returned, newest first."""
    return newest_first(name for name, files in found.items() if MANIFEST in files)


def newest_first(names: Iterable[str]) -> list[str]:
    """Return the names of versions in the order of the times in them, newest first."""
    return sorted(names, key=lambda name: (time_in(name), name), reverse=True)


def time_in(name: str) -> str:
    """Return the time when saving a version began, as its name has it: text that sorts by time."""
    match = VERSION_NAME.fullmatch(name)
    return match["time"] if match else ""


def entered_at(name: str, files: list[str]) -> str:
    """Return the time when a version came into the store, as keys have it: of a trial later than its name says."""
    entered = [file.removeprefix(ENTERED) for file in files if file.startswith(ENTERED)]
    return max([time_in(name), *entered])


def version_name(created_at: datetime, task: str, settings: TrainingSettings, accuracy: float) -> str:
    """Return a name that tells one training from another: task, family, time, network, recipe, validation accuracy."""
    chosen = f"{settings.network_label}_{settings.recipe_label}"
    return f"{task}_{settings.FAMILY}_{time_text(created_at)}_{chosen}_acc{accuracy:.4f}"
