"""Images to be predicted in batches; observed, never rewritten."""

import dagster as dg

from mnist_pipeline.defs.observing import observed
from mnist_pipeline.defs.resources.folders import PredictionInputResource


@dg.observable_source_asset(
    group_name="inference",
    description="Images to be predicted in batches: the folder PREDICTION_INPUT. Observed, never rewritten.",
)
def prediction_input(prediction_input_dir: PredictionInputResource) -> dg.ObserveResult:
    return observed(prediction_input_dir)
