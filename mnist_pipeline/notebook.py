"""The project in a notebook: one import for the values, models and assets of the deployment of the environment.

from mnist_pipeline import notebook

model = notebook.deployed()
model.predict(images)
"""

import os
from functools import cache
from typing import TYPE_CHECKING, Any

import dagster as dg
from dotenv import find_dotenv, load_dotenv

from mnist_pipeline.environment import Environment
from mnist_pipeline.stores import ModelStore, NothingDeployed, store_from_environment

if TYPE_CHECKING:
    import pandas as pd

    from mnist_pipeline.experiments.comparing import Compared
    from mnist_pipeline.ml.predictor import Predictor


@cache
def definitions() -> dg.Definitions:
    """Return the definitions of the deployment: its variables, and those in a .env above the folder of the notebook."""
    from mnist_pipeline.definitions import build_definitions

    load_dotenv(find_dotenv(usecwd=True), override=True)  # as Dagster's own commands do
    return build_definitions(Environment.read(os.environ))


def store() -> ModelStore:
    """Return the model store."""
    definitions()  # the variables of .env
    return store_from_environment(Environment.read(os.environ))


def value(asset: str) -> Any:
    """Return the stored value of an asset: of `processed_mnist_data` the splits, of `model_evaluation` the scores."""
    with dg.DagsterInstance.ephemeral() as instance:
        return definitions().load_asset_value(dg.AssetKey(asset), instance=instance)


def materialize(*assets: str, **config: dict[str, Any]) -> dg.ExecuteInProcessResult:
    """Materialize assets in this process, each with its settings: `materialize("model_evaluation")`.

    What they read is what is stored; what they give is stored, and `result.output_for_node` has it at hand. The run is
    in no history. Raises the error of the step that fails.
    """
    found = definitions()
    keys = dg.AssetSelection.assets(*assets)
    steps = {step: {"config": values} for step, values in config.items()}
    assets_and_sources: list[Any] = list(found.assets or [])
    return dg.materialize(assets_and_sources, selection=keys, resources=found.resources, run_config={"ops": steps})


def models() -> "pd.DataFrame":
    """Return the versions in the store, the newest first: data, scores, decisions, state."""
    import pandas as pd

    from mnist_pipeline.stores.overview import overview

    return pd.DataFrame(overview(store()).rows).set_index("version")


def deployed() -> "Predictor":
    """Return the deployed model: `predict(images)` gives its probabilities. Raises NothingDeployed."""
    from mnist_pipeline.ml.predictor import Predictor

    if store().production() is None:
        raise NothingDeployed("nothing is deployed yet: make run")
    return Predictor.from_store(store())


def compare(first: str, second: str) -> "Comparison":
    """Compare two versions, by their names, `deployed`, or trials; a cell shows the tables and pictures.

    Raises ModelStoreError or ModelError.
    """
    from mnist_pipeline.experiments.comparing import compare_versions

    return Comparison(compare_versions(store(), first, second))


class Comparison:
    """Two versions compared, as a cell shows them."""

    def __init__(self, compared: "Compared") -> None:
        self.compared = compared

    @property
    def scores(self) -> "pd.DataFrame":
        """Scores and cost of both, and the difference."""
        import pandas as pd

        from mnist_pipeline.experiments.comparing import score_rows

        return pd.DataFrame(score_rows(self.compared)).set_index("measure")

    @property
    def slices(self) -> "pd.DataFrame":
        """The paired test on all images and on each slice."""
        import pandas as pd

        from mnist_pipeline.experiments.comparing import paired_rows

        return pd.DataFrame(paired_rows(self.compared)).set_index("on")

    def _repr_html_(self) -> str:
        from mnist_pipeline.experiments.comparing import comparison_page

        page = comparison_page(self.compared).decode()
        return page[page.index("<main") : page.index("</main>") + len("</main>")]
