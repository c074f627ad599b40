"""Images that people labelled after the fact; observed, never rewritten."""

import dagster as dg

from mnist_pipeline.defs.observing import observed
from mnist_pipeline.defs.resources.folders import LabelledImagesResource


@dg.observable_source_asset(
    group_name="data_processing",
    description="Images labelled by people after the fact: one sub-folder a class. Observed, never rewritten.",
)
def labelled_digits(labelled_digits_dir: LabelledImagesResource) -> dg.ObserveResult:
    return observed(labelled_digits_dir)
