"""A trial's version as a candidate of the main graph."""

from mnist_pipeline.experiments.ranking import ranked
from mnist_pipeline.experiments.trials import Chosen, Sweeps
from mnist_pipeline.ml.data import data_version
from mnist_pipeline.ml.manifest import ModelManifest
from mnist_pipeline.ml.records import Splits
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.copying import copy_version
from mnist_pipeline.stores.errors import ModelStoreError

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
    now = data_version(splits.spec, *splits.parts.values())
    if manifest.training.data_version != now:
        then = (manifest.training.data_version or "")[:8]
        raise ModelStoreError(
            f"{record.name_of(trial)} was trained on the data {then}, and now they are {now[:8]}: start the sweep "
            f"again under another name, or train with its settings, {trial.values}"
        )
    copy_version(models, store, manifest.name)
    return manifest
