"""A trial's version as a candidate of the main graph."""

from datetime import UTC, datetime

from mnist_pipeline.experiments.ranking import ranked
from mnist_pipeline.experiments.trials import Chosen, Sweeps
from mnist_pipeline.ml.data import content_digest
from mnist_pipeline.ml.manifest import ModelManifest
from mnist_pipeline.ml.records import Splits
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.copying import copy_version
from mnist_pipeline.stores.datasets import keep_splits
from mnist_pipeline.stores.errors import ModelStoreError
from mnist_pipeline.stores.objects import time_text
from mnist_pipeline.stores.versions import ENTERED

NEWEST = "newest"
"""The name that stands for the sweep that was started last."""


def best_trial(sweeps: Sweeps, name: str) -> Chosen:
    """Return the trial of that name; of the name of a sweep the best one of its best configuration.

    Raises UnknownModel, or ModelStoreError if none has succeeded.
    """
    if "/" in name:
        chosen = sweeps.chosen(name)
        if chosen.trial.version is None:
            why = chosen.trial.problem or "it is not done yet"
            raise ModelStoreError(f"the trial {name} has no version: {why}")
        return chosen
    record = sweeps.read(sweeps.newest() if name == NEWEST else name)
    rows = ranked(record)
    if not rows:
        failed = next((trial.problem for trial in record.trials if trial.problem), "none is done yet")
        raise ModelStoreError(f"no trial of the sweep {record.sweep.name} has succeeded: {failed}")
    return Chosen(record, rows[0].best_trial)


def take_candidate(store: ModelStore, name: str, splits: Splits) -> ModelManifest:
    """Copy the version of a trial, or of the best one of a sweep, into the store itself, and return its manifest.

    Raises ModelStoreError if there is none, or if it was trained on other images than `splits`: its evaluation beside
    the others would not be fair.
    """
    sweeps = Sweeps(store)
    record, trial = best_trial(sweeps, name)
    models = sweeps.models(record.sweep.name)
    manifest = models.manifest(trial.version or "")
    differing = [
        name
        for name in ("train", "validation", "test")  # held-out labels neither train nor decide
        if manifest.training.splits[name].digest != content_digest(splits.parts[name])
    ]
    if differing:
        raise ModelStoreError(
            f"{record.name_of(trial)} was trained on other {', '.join(differing)} images than there are now; "
            f"start the sweep again under another name, or train with its settings, {trial.values}"
        )
    keep_splits(store, splits)  # they may be gone, or about to go
    # By its name it is old, and prune goes by when it came; first, so that no prune takes it for a killed save.
    store.put(f"{manifest.name}/{ENTERED}{time_text(datetime.now(UTC))}", b"")
    copy_version(models, store, manifest.name)
    return manifest
