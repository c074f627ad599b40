"""Group data_processing: from raw MNIST to the splits."""

from abc import ABC, abstractmethod
from pathlib import Path

import dagster as dg
from pydantic import Field
from upath import UPath

from mnist_pipeline.assets.early_validation import validate_run_config
from mnist_pipeline.assets.metadata import picture, table
from mnist_pipeline.ml import folders
from mnist_pipeline.ml.records import Dataset, Splits
from mnist_pipeline.ml.settings import SplitSettings
from mnist_pipeline.ml.storage import storage_path

GROUP = "data_processing"
KINDS_DATA = {"python", "safetensors"}
NO_FOLDER = "no folder"


class RawDataResource(dg.ConfigurableResource):
    """Where raw MNIST comes from."""

    source: str = Field("auto", description="auto, directory, download or sample.")
    directory: str = Field(description="Folder of the IDX files; downloads go there too.")
    mirrors: list[str] = Field(default=[], description="Base URLs to download from; torchvision's own when empty.")


class WatchedFolderResource(dg.ConfigurableResource, ABC):
    """A folder that others write to; its asset is observed."""

    @abstractmethod
    def path(self) -> UPath | None:
        """None where no folder is set."""

    def fingerprint(self) -> str:
        """Changes whenever a file does, and is found without reading the files."""
        return folders.fingerprint(path) if (path := self.path()) else NO_FOLDER

    def data_version(self) -> str:
        """Digest of names and contents."""
        return folders.digest(path) if (path := self.path()) else NO_FOLDER


class LabelledDigitsResource(WatchedFolderResource):
    """The drop folder of digits that people labelled."""

    location: str = Field(description="Folder, or s3://bucket/prefix, with sub-folders 0 to 9.")
    endpoint_url: str | None = Field(None, description="For stores that speak S3 but are not Amazon's.")

    def path(self) -> UPath:
        return storage_path(self.location, self.endpoint_url)


@dg.observable_source_asset(
    group_name=GROUP,
    description="Digits labelled by people after the fact: one sub-folder a class. Observed, never rewritten.",
)
def labelled_digits(labelled_digits_dir: LabelledDigitsResource) -> dg.ObserveResult:
    return dg.ObserveResult(
        data_version=dg.DataVersion(labelled_digits_dir.data_version()),
        metadata={"location": dg.MetadataValue.path(labelled_digits_dir.location)},
    )


@dg.asset(group_name=GROUP, kinds=KINDS_DATA, code_version="1", io_manager_key="tensor_io_manager")
def raw_mnist_data(context: dg.AssetExecutionContext, raw_data: RawDataResource) -> dg.Output[Dataset]:
    """The verified data set, untouched: uint8 images (0..255) and labels (0..9) of train and test."""
    from mnist_pipeline.ml.data import DataError, class_counts, content_digest
    from mnist_pipeline.ml.plots import class_distribution, digit_grid
    from mnist_pipeline.ml.sources import load_dataset

    validate_run_config(context.run.run_config)  # hours of training should not end in a typo
    try:
        dataset = load_dataset(raw_data.source, Path(raw_data.directory), raw_data.mirrors)  # type: ignore[arg-type]
    except DataError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    context.log.info("data: %s", dataset.description)
    digest = content_digest(dataset.train, dataset.test)
    train_counts, test_counts = class_counts(dataset.train.labels), class_counts(dataset.test.labels)
    return dg.Output(
        dataset,
        data_version=dg.DataVersion(digest),
        metadata={
            "data": dataset.description,
            "train_images": len(dataset.train.labels),
            "test_images": len(dataset.test.labels),
            "sha256": digest,
            "classes": table(
                [
                    {"label": label, "train": train, "test": test}
                    for label, (train, test) in enumerate(zip(train_counts, test_counts, strict=True))
                ]
            ),
            "class_distribution": picture(
                class_distribution({"train": dataset.train.labels, "test": dataset.test.labels}), "class distribution"
            ),
            "examples": picture(digit_grid(dataset.train), "training images of each class"),
        },
    )


class SplitConfig(dg.Config, SplitSettings):
    """How train and validation are divided."""


@dg.asset(
    group_name=GROUP,
    kinds=KINDS_DATA,
    code_version="1",
    io_manager_key="tensor_io_manager",
    deps=[labelled_digits],
)
def processed_mnist_data(
    context: dg.AssetExecutionContext,
    config: SplitConfig,
    raw_mnist_data: Dataset,
    labelled_digits_dir: LabelledDigitsResource,
) -> dg.Output[Splits]:
    """Train, validation (stratified) and test; labelled digits join train only. Images stay uint8, 0..255."""
    from mnist_pipeline.ml.data import DataError, class_counts, content_digest, split
    from mnist_pipeline.ml.labelled import read_labelled
    from mnist_pipeline.ml.plots import class_distribution, digit_grid

    labelled = read_labelled(labelled_digits_dir.path())
    for name, why in labelled.skipped.items():
        context.log.warning("labelled digit %s is skipped: %s", name, why)
    try:
        splits = split(raw_mnist_data, labelled.digits, config)
    except DataError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    digest = content_digest(*splits)
    metadata: dict[str, dg.RawMetadataValue] = {
        "train_images": len(splits.train.labels),
        "validation_images": len(splits.validation.labels),
        "test_images": len(splits.test.labels),
        "labelled_digits_joined": len(labelled.digits.labels),
        "labelled_digits_skipped": len(labelled.skipped),
        "sha256": digest,
        "classes": table(
            [
                {"label": label, **dict(zip(Splits._fields, counts, strict=True))}
                for label, counts in enumerate(zip(*(class_counts(part.labels) for part in splits), strict=True))
            ]
        ),
        "class_distribution": picture(
            class_distribution({name: part.labels for name, part in splits._asdict().items()}), "class distribution"
        ),
    }
    if labelled.skipped:
        metadata["skipped_files"] = table([{"file": n, "reason": why} for n, why in labelled.skipped.items()])
    if len(labelled.digits.labels):
        metadata["labelled_digits"] = picture(digit_grid(labelled.digits), "digits labelled by people")
    return dg.Output(splits, data_version=dg.DataVersion(digest), metadata=metadata)
