"""Images to be predicted in batches; observed, never rewritten."""

import dagster as dg

from mnist_pipeline.defs.resources.folders import PredictionInputResource


@dg.observable_source_asset(
    group_name="inference",
    description="Images to be predicted in batches: the folder PREDICTION_INPUT. Observed, never rewritten.",
)
def prediction_input(prediction_input_dir: PredictionInputResource) -> dg.ObserveResult:
    location = prediction_input_dir.location or "none: the test images are predicted"
    return dg.ObserveResult(
        data_version=dg.DataVersion(prediction_input_dir.data_version()),
        metadata={"location": dg.MetadataValue.path(location)},
    )
