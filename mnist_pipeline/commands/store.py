"""The model store that a command is about."""

import os

from mnist_pipeline.environment import Environment
from mnist_pipeline.stores import MemoryModelStore, ModelStore, ModelStoreError, store_from_environment


def lasting_store() -> ModelStore:
    """Return the store of the environment. Raises ModelStoreError for one in memory, EnvironmentInvalid."""
    store = store_from_environment(Environment.read(os.environ))
    require_lasting(store)
    return store


def require_lasting(store: ModelStore) -> None:
    """Raise ModelStoreError for a store in memory."""
    if isinstance(store, MemoryModelStore):
        raise ModelStoreError(f"{store.address} lives in the memory of one process, and no other can look at it")
