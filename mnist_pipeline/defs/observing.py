"""An observation of a folder that others write to."""

import dagster as dg

from mnist_pipeline.defs.metadata import left_out
from mnist_pipeline.defs.resources.folders import WatchedFolderResource
from mnist_pipeline.files.folders import Walk


def observed(folder: WatchedFolderResource) -> dg.ObserveResult:
    """Return the data version of a folder as it is now, for an observable asset."""
    found = folder.walk()
    return dg.ObserveResult(
        data_version=dg.DataVersion(folder.data_version(found)), metadata=observation(folder, found)
    )


def observation(folder: WatchedFolderResource, found: Walk) -> "dict[str, dg.RawMetadataValue]":
    """Return the metadata of a look at a folder: where it is, how many files count, and what is left out and why."""
    return {
        "location": dg.MetadataValue.path(folder.location or "none"),
        "files": len(found.files),
        **left_out(found.left_out),
    }
