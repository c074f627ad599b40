"""Model stores: immutable versions, one production pointer, an audit trail. They import no Dagster."""

from typing import NoReturn

from mnist_pipeline.stores.addresses import store_at, store_from_environment
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.cloud import AzureModelStore, GoogleModelStore, MemoryModelStore, S3ModelStore
from mnist_pipeline.stores.errors import (
    CorruptModel,
    ModelStoreError,
    NotExported,
    NothingDeployed,
    PromotionConflict,
    UnknownModel,
)
from mnist_pipeline.stores.local import LocalModelStore

__all__ = [
    "AzureModelStore",
    "CorruptModel",
    "GoogleModelStore",
    "LocalModelStore",
    "MemoryModelStore",
    "ModelStore",
    "ModelStoreError",
    "NotExported",
    "NothingDeployed",
    "PromotionConflict",
    "S3ModelStore",
    "UnknownModel",
    "store_at",
    "store_from_environment",
]


def __getattr__(name: str) -> NoReturn:
    """Answer the names of before, when a store was a Dagster resource."""
    if (plain := name.removesuffix("Resource")) != name and plain in __all__:
        raise AttributeError(
            f"{name} is made by mnist_pipeline.defs.resources.stores.as_resource now; "
            f"without Dagster use {__name__}.{plain}"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
