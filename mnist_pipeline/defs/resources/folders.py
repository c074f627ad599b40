"""Folders and buckets that a deployment reads and writes."""

from abc import ABC
from pathlib import Path, PurePath

import dagster as dg
from pydantic import Field
from upath import UPath

from mnist_pipeline.files import folders
from mnist_pipeline.files.storage import storage_path
from mnist_pipeline.ml.records import BatchPredictions, part_file
from mnist_pipeline.ml.review import ReviewQueue
from mnist_pipeline.task.dataset import DEFAULT_DATASET, DatasetSettings

NO_FOLDER = "no folder"

MOST_ITEMS = 1000
"""A run keeps so many of the latest doubtful answers, and of the latest doubtful labels. A service keeps `review_items`
of each, which are fewer if nobody set it."""


class RawDataResource(dg.ConfigurableResource):
    """The raw data set: the fields of DatasetSettings, and the mirrors."""

    dataset: str = Field(DEFAULT_DATASET, description="A data set by its name, or `folder`.")
    source: str = Field("auto", description="The kind of the source.")
    directory: str = Field(description="Folder of the raw files; downloads go there too.")
    name: str | None = Field(None, description="The name of the task, with `folder`.")
    image_size: list[int] | None = Field(None, description="Height and width, with `folder`.")
    image_channels: int | None = Field(None, description="1 grey, 3 colour, with `folder`.")
    pictures: str | None = Field(None, description="The kind of pictures, with `folder`.")
    links: folders.Links = Field("inside", description="Links that are followed, with `folder`.")
    mirrors: list[str] = Field(default=[], description="Base URLs to download from; torchvision's own when empty.")

    def settings(self) -> DatasetSettings:
        """Return them validated."""
        return DatasetSettings.model_validate(self.model_dump(include=set(DatasetSettings.model_fields)))


class _Place(dg.ConfigurableResource, ABC):
    """A folder, or an address of a bucket."""

    endpoint_url: str | None = Field(None, description="For stores that speak S3 but are not Amazon's.")

    def _path(self, location: str) -> UPath:
        return storage_path(location, self.endpoint_url)


class CheckpointsResource(_Place):
    """The place in which an unfinished training is kept, so that a killed one continues, on whatever machine."""

    directory: str = Field(description="Folder, or address of a bucket; on several machines, one that they share.")

    def path(self) -> UPath:
        """Return the folder, which need not exist."""
        return self._path(self.directory)


class PredictionsResource(_Place):
    """The place of the tables of predictions."""

    location: str = Field(description="Folder, or address of a bucket.")
    parts: int = Field(1, ge=1, description="Steps that predict a part each; with several, a table is a folder.")

    def table_paths(self, name: str) -> tuple[UPath, UPath, UPath]:
        """Return where the table, the table of errors and the record of the predictions `name` are."""
        folder = self._path(self.location)
        return folder / f"{name}.parquet", folder / f"{name}.errors.parquet", folder / f"{name}.json"

    def drift_path(self, record: BatchPredictions) -> UPath:
        """Return where the picture is of how a table differs from the validation split."""
        return self._path(self.location) / f"{PurePath(record.path).stem}.drift.png"

    def table_files(self, record: BatchPredictions) -> list[UPath]:
        """Return the files of a table, which may have been moved since its record was written."""
        table, _, _ = self.table_paths(PurePath(record.path).stem)
        return [table] if record.parts == 1 else [table / part_file(number) for number in range(record.parts)]


class ReviewResource(_Place):
    """The images for people to look at, which the service shows."""

    location: str = Field(description="Folder, or address of a bucket.")

    def queue(self) -> ReviewQueue:
        """Return the queue."""
        return ReviewQueue(self._path(self.location), MOST_ITEMS)


class WatchedFolderResource(_Place):
    """A folder that others write to; its asset is observed."""

    location: str | None = Field(None, description="Folder, or address of a bucket.")
    links: folders.Links = Field("inside", description="Links that are followed: inside the folder, anywhere, never.")

    def path(self) -> UPath | None:
        """Return the folder, or None where none is set."""
        return self._path(self.location) if self.location else None

    def walk(self) -> folders.Walk:
        """Return the files that count, and what is left out and why; nothing where no folder is set."""
        return folders.walk(path, self.links) if (path := self.path()) else folders.Walk({}, {})

    def data_version(self, found: folders.Walk) -> str:
        """Return the digest of names and contents of what `walk` found."""
        return folders.digest(path, found) if (path := self.path()) else NO_FOLDER


class LabelledImagesResource(WatchedFolderResource):
    """The drop folder of images that people labelled: a sub-folder for each class. It need not exist."""

    location: str = Field(description="Folder, or address of a bucket.")

    def path(self) -> UPath:
        """Return the folder."""
        return self._path(self.location)


class PredictionInputResource(WatchedFolderResource):
    """The folder that batch predictions read when a run names no inputs; none: the test images."""

    def path(self) -> UPath | None:
        """Return the folder, or None where none is set.

        Raises FileNotFoundError for a folder that is not there: a typo must not look like an empty folder. Of a bucket
        that cannot be told: a prefix exists no more when it is empty.
        """
        path = super().path()
        if isinstance(path, Path) and not path.is_dir():
            raise FileNotFoundError(f"PREDICTION_INPUT names no folder: {self.location}")
        return path
