"""Images that people labelled after the fact; observed, never rewritten."""

import dagster as dg

from mnist_pipeline.defs.resources.folders import LabelledImagesResource


@dg.observable_source_asset(
    group_name="data_processing",
    description="Images labelled by people after the fact: one sub-folder a class. Observed, never rewritten.",
)
def labelled_digits(labelled_digits_dir: LabelledImagesResource) -> dg.ObserveResult:
    return dg.ObserveResult(
        data_version=dg.DataVersion(labelled_digits_dir.data_version()),
        metadata={"location": dg.MetadataValue.path(labelled_digits_dir.location)},
    )
