"""A version that was trained elsewhere, as a candidate of the main graph: a trial, or one of another store."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime

from mnist_pipeline.experiments.naming import Found, best_trial, find_version, version_of
from mnist_pipeline.experiments.trials import Sweeps
from mnist_pipeline.ml.data import content_digest, shared_images
from mnist_pipeline.ml.manifest import ModelManifest
from mnist_pipeline.ml.predictor import require_task
from mnist_pipeline.ml.records import Splits
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.copying import copy_version
from mnist_pipeline.stores.datasets import copy_images, digests_of, keep_splits, load_images
from mnist_pipeline.stores.errors import ModelStoreError
from mnist_pipeline.stores.objects import time_text
from mnist_pipeline.stores.versions import ENTERED

log = logging.getLogger(__name__)


def take_candidate(store: ModelStore, name: str, splits: Splits) -> ModelManifest:
    """Copy the version of a trial, or of the best one of a sweep, into the store itself, and return its manifest.

    Raises ModelStoreError if there is none, or if it was trained on other images than `splits`: its evaluation beside
    the others would not be fair.
    """
    sweeps = Sweeps(store)
    record, trial = chosen = best_trial(sweeps, name)
    found = version_of(sweeps, chosen)
    if differing := _differing(found.manifest, splits):
        raise ModelStoreError(
            f"{record.name_of(trial)} was trained on other {', '.join(differing)} images than there are now; "
            f"start the sweep again under another name, or train with its settings, {trial.values}"
        )
    _bring(store, found, lambda: keep_splits(store, splits))  # they may be gone, or about to go
    return found.manifest


def take_version(store: ModelStore, source: ModelStore, name: str, splits: Splits) -> ModelManifest:
    """Copy a version of another store, named as for `find_version`, into the store itself, and return its manifest.

    It may have been trained on other images than those of `splits`, but on none that it is going to be tested on.
    Raises ModelStoreError if it was, or if that cannot be told, ModelError if it is of another task.
    """
    found = find_version(source, name)
    manifest = found.manifest
    require_task(manifest, splits.spec.name)
    if not manifest.training.epochs or not manifest.training.best_epoch:
        raise ModelStoreError(f"{manifest.name} does not say how it was trained, or in words of other code")
    differing = _differing(manifest, splits)
    for part in [part for part in ("train", "validation") if part in differing]:
        record = manifest.training.splits.get(part)
        try:
            images = load_images(source, (record and record.digest) or "unknown")
        except ModelStoreError as error:
            raise ModelStoreError(
                f"it cannot be told if {manifest.name} was trained on images that it would be tested on: {error}"
            ) from error
        for kind, scored in (("test", splits.test), ("held-out", splits.held_out)):
            if seen := shared_images(images, scored):
                raise ModelStoreError(
                    f"{manifest.name} had {seen:,} of the {len(scored.labels):,} {kind} images in its {part} split, so "
                    "its scores would prove nothing: train it without these"
                )
        if part == "train" and (seen := shared_images(images, splits.validation)):
            log.warning(
                "%s was trained on %d of the %d validation images: its validation accuracy here, and the confidence "
                "threshold that follows from them, look better than they are",
                *(manifest.name, seen, len(splits.validation.labels)),
            )
    if manifest.name not in store.versions():
        _bring(store, found, lambda: _copy_all_images(source, store, manifest))
    elif not store.manifest(manifest.name).digests.same(manifest.digests):
        raise ModelStoreError(f"{store.address} has another {manifest.name} than {source.address}")
    return store.manifest(manifest.name)


def _differing(manifest: ModelManifest, splits: Splits) -> list[str]:
    """The splits of a version that are not those of now."""
    records = manifest.training.splits
    return [
        name
        for name in ("train", "validation", "test")  # held-out labels neither train nor decide
        if name not in records or records[name].digest != content_digest(splits.parts[name])
    ]


def _copy_all_images(source: ModelStore, store: ModelStore, manifest: ModelManifest) -> None:
    for digest in digests_of(manifest.training.splits):
        copy_images(source, store, digest)


def _bring(store: ModelStore, found: Found, keep_images: Callable[[], object]) -> None:
    keep_images()
    # By its name it is old, and prune goes by when it came; first, so that no prune takes it for a killed save.
    store.put(f"{found.manifest.name}/{ENTERED}{time_text(datetime.now(UTC))}", b"")
    copy_version(found.store, store, found.manifest.name)
