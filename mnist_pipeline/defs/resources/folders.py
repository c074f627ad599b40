"""Folders that a deployment reads and writes."""

from abc import ABC, abstractmethod
from pathlib import Path

import dagster as dg
from pydantic import Field
from upath import UPath

from mnist_pipeline.files import folders
from mnist_pipeline.files.storage import storage_path
from mnist_pipeline.task.dataset import Source

NO_FOLDER = "no folder"


class RawDataResource(dg.ConfigurableResource):
    """The source of raw data."""

    source: Source = Field("auto", description="The kind of the source.")
    directory: str = Field(description="Folder of the raw files; downloads go there too.")
    mirrors: list[str] = Field(default=[], description="Base URLs to download from; torchvision's own when empty.")


class CheckpointsResource(dg.ConfigurableResource):
    """The folder in which an unfinished training is kept, so that a killed one continues."""

    directory: str = Field(description="A local folder; on several machines, one that they share.")


class PredictionsResource(dg.ConfigurableResource):
    """The folder of the tables of predictions."""

    location: str = Field(description="Folder, or s3://bucket/prefix.")
    endpoint_url: str | None = Field(None, description="For stores that speak S3 but are not Amazon's.")

    def table_paths(self, name: str) -> tuple[UPath, UPath, UPath]:
        """Return where the table, the table of errors and the record of the predictions `name` are."""
        folder = storage_path(self.location, self.endpoint_url)
        return folder / f"{name}.parquet", folder / f"{name}.errors.parquet", folder / f"{name}.json"


class WatchedFolderResource(dg.ConfigurableResource, ABC):
    """A folder that others write to; its asset is observed."""

    @abstractmethod
    def path(self) -> UPath | None:
        """Return the folder, or None where none is set."""

    def fingerprint(self) -> str:
        """Return a text that changes whenever a file does, found without reading the files."""
        return folders.fingerprint(path) if (path := self.path()) else NO_FOLDER

    def data_version(self) -> str:
        """Return the digest of names and contents."""
        return folders.digest(path) if (path := self.path()) else NO_FOLDER


class LabelledImagesResource(WatchedFolderResource):
    """The drop folder of images that people labelled."""

    location: str = Field(description="Folder, or s3://bucket/prefix, with a sub-folder for each class.")
    endpoint_url: str | None = Field(None, description="For stores that speak S3 but are not Amazon's.")

    def path(self) -> UPath:
        """Return the folder, which need not exist."""
        return storage_path(self.location, self.endpoint_url)


class PredictionInputResource(WatchedFolderResource):
    """The folder that batch predictions read when a run names no inputs."""

    location: str | None = Field(None, description="A local folder; none: the test images.")

    def path(self) -> UPath | None:
        """Return the folder, or None where none is set.

        Raises FileNotFoundError for a folder that is not there: a typo must not look like an empty folder.
        """
        if self.location is not None and not Path(self.location).is_dir():
            raise FileNotFoundError(f"PREDICTION_INPUT names no folder: {self.location}")
        return UPath(self.location) if self.location else None
