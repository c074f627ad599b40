"""Model stores as Dagster resources: the classes of `mnist_pipeline.stores` with `dg.ConfigurableResource` added."""

from functools import cache

import dagster as dg

from mnist_pipeline.stores.base import ModelStore


class ModelStoreResource(dg.ConfigurableResource, ModelStore):
    """Any model store, for the annotation of assets."""


def as_resource(store: ModelStore) -> ModelStoreResource:
    """Return the resource of a store: of `LocalModelStore` a `LocalModelStoreResource`, and so on."""
    return _resource_class(type(store))(**store.model_dump())


@cache
def _resource_class(kind: type[ModelStore]) -> type[ModelStoreResource]:
    return type(f"{kind.__name__}Resource", (ModelStoreResource, kind), {"__doc__": kind.__doc__})
