"""Versions and trials by what people call them."""

from typing import NamedTuple

from mnist_pipeline.experiments.ranking import ranked
from mnist_pipeline.experiments.trials import Chosen, Sweeps
from mnist_pipeline.ml.manifest import ModelManifest
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.errors import ModelStoreError, NothingDeployed

DEPLOYED = "deployed"
"""The name that stands for what is deployed."""

NEWEST = "newest"
"""The name that stands for the sweep that was started last."""


class Found(NamedTuple):
    """A version, and the store that it is in: the store itself, or the folder of a sweep."""

    store: ModelStore
    manifest: ModelManifest


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


def find_version(store: ModelStore, name: str) -> Found:
    """Return a version by its name or the beginning of it, a trial by its own, or what is `deployed`.

    Raises UnknownModel, NothingDeployed or ModelStoreError.
    """
    if "/" in name:
        sweeps = Sweeps(store)
        return version_of(sweeps, best_trial(sweeps, name))
    if name == DEPLOYED:
        if (decision := store.production()) is None:
            raise NothingDeployed("nothing is deployed yet")
        return Found(store, store.manifest(decision.version))
    return Found(store, store.manifest(store.resolve(name)))


def version_of(sweeps: Sweeps, chosen: Chosen) -> Found:
    """Return the version of a trial that has one. Raises UnknownModel or CorruptModel."""
    models = sweeps.models(chosen.record.sweep.name)
    return Found(models, models.manifest(chosen.trial.version or ""))
