"""The choice of a store by the environment."""

from importlib import import_module

from mnist_pipeline.environment import Environment
from mnist_pipeline.stores.base import ModelStore


def store_from_environment(environment: Environment) -> ModelStore:
    """Return the store that the environment describes.

    MODEL_STORE is the name of a module of this package, and its function `from_environment` makes the store: another
    kind of store is another module, and its variables in `Environment`.
    """
    return import_module(f"mnist_pipeline.stores.{environment.model_store}").from_environment(environment)
