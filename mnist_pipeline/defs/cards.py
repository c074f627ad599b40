"""The cards of versions, made again where something was recorded about them."""

import dagster as dg

from mnist_pipeline.defs.resources.stores import ModelStoreResource
from mnist_pipeline.stores.base import ModelStore


def kept_card(
    context: dg.AssetExecutionContext, store: ModelStore | ModelStoreResource, *names: str | None
) -> "dict[str, dg.RawMetadataValue]":
    """Make the cards of versions again, and return where that of the first one is, for the asset's page.

    A version that cannot be read any more has none, and stops nothing.
    """
    from mnist_pipeline.experiments.card import keep_card
    from mnist_pipeline.stores.errors import ModelStoreError
    from mnist_pipeline.stores.versions import CARD

    for name in dict.fromkeys(filter(None, names)):
        try:
            keep_card(store, name)
        except (ModelStoreError, OSError, ValueError) as error:
            context.log.warning("%s has no card: %s", name, error)
    return {"card": dg.MetadataValue.path(f"{store.address}/{names[0]}/{CARD}")}
