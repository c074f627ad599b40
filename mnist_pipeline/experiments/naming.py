"""Versions by what people call them."""

from typing import NamedTuple

from mnist_pipeline.experiments.candidate import best_trial
from mnist_pipeline.experiments.trials import Sweeps
from mnist_pipeline.ml.manifest import ModelManifest
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.errors import NothingDeployed

DEPLOYED = "deployed"
"""The name that stands for what is deployed."""


class Found(NamedTuple):
    """A version, and the store that it is in: the store itself, or the folder of a sweep."""

    store: ModelStore
    manifest: ModelManifest


def find_version(store: ModelStore, name: str) -> Found:
    """Return a version by its name or the beginning of it, a trial by its own, or what is `deployed`.

    Raises UnknownModel, NothingDeployed or ModelStoreError.
    """
    if "/" in name:
        record, trial = best_trial(Sweeps(store), name)
        models = Sweeps(store).models(record.sweep.name)
        return Found(models, models.manifest(trial.version or ""))
    if name == DEPLOYED:
        if (decision := store.production()) is None:
            raise NothingDeployed("nothing is deployed yet")
        return Found(store, store.manifest(decision.version))
    return Found(store, store.manifest(store.resolve(name)))
