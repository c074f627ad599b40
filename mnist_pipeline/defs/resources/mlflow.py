"""MLflow, for those who look there: a copy of what the store records, if MLFLOW_TRACKING_URI is set."""

from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from mnist_pipeline.stores.base import ModelStore

if TYPE_CHECKING:
    from mnist_pipeline.experiments.mlflow_mirror import Mirror


class MlflowResource(dg.ConfigurableResource):
    """The server, or none."""

    tracking_uri: str | None = Field(None, description="Of the tracking server and the registry, http(s).")
    task: str = Field("", description="The name of the experiment and of the registered model.")

    def mirror(self, context: dg.AssetExecutionContext) -> "Mirror | None":
        """Return what tells MLflow; None if there is no server. What goes wrong is a warning in the log of the step."""
        if not self.tracking_uri:
            return None
        from mnist_pipeline.experiments.mlflow_mirror import Mirror

        return Mirror(self.tracking_uri, self.task, context.log.warning)


def moved_alias(context: dg.AssetExecutionContext, mirror: "Mirror | None", store: ModelStore) -> None:
    """Move the alias `production` to what is deployed. A version that cannot be read stops nothing."""
    from mnist_pipeline.stores.errors import ModelStoreError

    try:
        if mirror:
            mirror.pointer(store)
    except (ModelStoreError, OSError, ValueError) as error:
        context.log.warning("MLflow is not told of what is deployed: %s", error)


def in_mlflow(
    context: dg.AssetExecutionContext,
    mirror: "Mirror | None",
    store: ModelStore,
    *names: str | None,
    registered: bool = True,
) -> "dict[str, dg.RawMetadataValue]":
    """Send what is recorded about versions, and return the page of the first one, for the asset's page.

    `registered` is False for those that the registry does not know. A server that is down stops nothing.
    """
    if mirror is None:
        return {}
    from mnist_pipeline.stores.errors import ModelStoreError

    pages = []
    for name in dict.fromkeys(filter(None, names)):
        try:
            pages.append(mirror.version(store, name, registered))
        except (ModelStoreError, OSError, ValueError) as error:
            context.log.warning("MLflow is not told of %s: %s", name, error)
    if mirror.problem:
        return {"mlflow": mirror.problem}
    return {"mlflow": dg.MetadataValue.url(pages[0])} if pages and pages[0] else {}
