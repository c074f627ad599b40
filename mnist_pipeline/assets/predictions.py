"""Group inference: predictions by what is deployed."""

from base64 import b64decode
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field
from upath import UPath

from mnist_pipeline.assets.data import WatchedFolderResource
from mnist_pipeline.assets.deployment import production_digit_classifier
from mnist_pipeline.assets.metadata import picture, table
from mnist_pipeline.assets.model import CRASH_RETRIES
from mnist_pipeline.ml.records import (
    BatchPredictions,
    DigitPredictions,
    DriftReference,
    InputError,
    Prediction,
    Splits,
)
from mnist_pipeline.ml.settings import CLASSES, BatchPredictionSettings, RealTimePredictionSettings
from mnist_pipeline.ml.storage import storage_path, upload, write_bytes
from mnist_pipeline.stores.base import ModelStoreResource
from mnist_pipeline.stores.errors import CorruptModel, UnknownModel

if TYPE_CHECKING:
    from mnist_pipeline.ml.inference import ImageBatch
    from mnist_pipeline.ml.predictor import Predictor

GROUP = "inference"
TEST_IMAGES = "test images"
CHANGED_INPUTS_WAIT_SECONDS = 10
BATCH_POOL = "batch_predictions"
"""One at a time, so that two runs do not predict the same; apart from the pool of training."""

BATCH_CODE_VERSION = "1"
"""Raise it when the same inputs and model would give another table."""

PREDICTIONS_FRESHNESS = dg.FreshnessPolicy.time_window(warn_window=timedelta(hours=26), fail_window=timedelta(hours=50))
"""One night missed, two nights missed; for a PREDICT_CRON that ticks less often than daily, change it too."""


class PredictionsResource(dg.ConfigurableResource):
    """Where tables of predictions go."""

    location: str = Field(description="Folder, or s3://bucket/prefix.")
    endpoint_url: str | None = Field(None, description="For stores that speak S3 but are not Amazon's.")

    def places(self, name: str) -> tuple[UPath, UPath, UPath]:
        """Of the table, the errors table and the record of one pair of model and inputs."""
        folder = storage_path(self.location, self.endpoint_url)
        return folder / f"{name}.parquet", folder / f"{name}.errors.parquet", folder / f"{name}.json"


class PredictionInputResource(WatchedFolderResource):
    """The folder that batch predictions read when a run names no inputs."""

    location: str | None = Field(None, description="A local folder; none: the test images.")

    def path(self) -> UPath | None:
        """Raises FileNotFoundError for a folder that is not there: a typo must not look like an empty folder."""
        if self.location is not None and not Path(self.location).is_dir():
            raise FileNotFoundError(f"PREDICTION_INPUT names no folder: {self.location}")
        return UPath(self.location) if self.location else None


@dg.observable_source_asset(
    group_name=GROUP,
    description="Images to be predicted in batches: the folder PREDICTION_INPUT. Observed, never rewritten.",
)
def prediction_input(prediction_input_dir: PredictionInputResource) -> dg.ObserveResult:
    location = prediction_input_dir.location or "none: the test images are predicted"
    return dg.ObserveResult(
        data_version=dg.DataVersion(prediction_input_dir.data_version()),
        metadata={"location": dg.MetadataValue.path(location)},
    )


class BatchPredictionConfig(dg.Config, BatchPredictionSettings):
    """What the batch predictions read and how."""


@dg.asset(
    group_name=GROUP,
    kinds={"parquet"},
    code_version=BATCH_CODE_VERSION,
    pool=BATCH_POOL,
    io_manager_key="record_io_manager",
    output_required=False,
    deps=[production_digit_classifier, prediction_input],
    dagster_type=dg.PythonObjectDagsterType(BatchPredictions),
    retry_policy=CRASH_RETRIES,
    freshness_policy=PREDICTIONS_FRESHNESS,
)
def batch_digit_predictions(
    context: dg.AssetExecutionContext,
    config: BatchPredictionConfig,
    processed_mnist_data: Splits,
    model_store: ModelStoreResource,
    predictions_dir: PredictionsResource,
    prediction_input_dir: PredictionInputResource,
) -> Iterator[dg.Output[BatchPredictions]]:
    """A Parquet table of label and confidence for every input image, by the deployed model, in constant memory.

    The inputs are those of the configuration, else of the folder PREDICTION_INPUT, else the test images. The same
    inputs are not predicted twice by the same model. Yields nothing while the folder is empty."""
    import hashlib

    from mnist_pipeline.ml.data import content_digest
    from mnist_pipeline.ml.inference import array_batches, inputs_digest, is_empty, read_batches

    predictor = _deployed(model_store)
    test = processed_mnist_data.test
    folder = [prediction_input_dir.location] if prediction_input_dir.location else []
    paths = _existing("input_paths", config.input_paths) or _existing("PREDICTION_INPUT", folder)
    if paths and is_empty(paths):
        context.log.info("there is nothing to predict in %s", ", ".join(map(str, paths)))
        return
    digest = inputs_digest(paths) if paths else content_digest(test)
    table_path, errors_path, record_path = predictions_dir.places(
        f"{predictor.version}_{digest[:16]}_v{BATCH_CODE_VERSION}"
    )
    predicted_before = record_path.exists() and table_path.exists()
    if predicted_before:
        context.log.info("%s predicted these inputs before, into %s", predictor.version, table_path)
        record = BatchPredictions.model_validate_json(record_path.read_bytes())
    else:
        batches = (
            read_batches(paths, config.batch_size)
            if paths
            else array_batches(test.images, TEST_IMAGES, config.batch_size)
        )
        record = _predict(predictor, batches, digest, table_path, errors_path)
        if paths and inputs_digest(paths) != digest:
            raise dg.RetryRequested(max_retries=3, seconds_to_wait=CHANGED_INPUTS_WAIT_SECONDS) from RuntimeError(
                "the inputs changed while they were read"
            )
        write_bytes(record_path, record.model_dump_json(indent=2).encode())  # last: it vouches for the table
    version = hashlib.sha256(f"{record.weights_sha256}{digest}".encode()).hexdigest()
    yield dg.Output(
        record,
        data_version=dg.DataVersion(version),
        metadata={
            **_batch_metadata(record, predictor.manifest.drift_reference),
            "predicted_before": predicted_before,
        },
    )


def _predict(
    predictor: "Predictor", batches: "Iterator[ImageBatch | InputError]", digest: str, table: UPath, errors: UPath
) -> BatchPredictions:
    import tempfile

    from mnist_pipeline.ml.inference import predict_to_parquet

    with tempfile.TemporaryDirectory() as scratch:
        table_file, errors_file = Path(scratch) / "table.parquet", Path(scratch) / "errors.parquet"
        result = predict_to_parquet(predictor, batches, table_file, errors_file)
        upload(errors_file, errors)
        upload(table_file, table)
    return BatchPredictions(
        model=predictor.version,
        weights_sha256=predictor.manifest.weights_sha256,
        inputs_digest=digest,
        path=str(table),
        errors_path=str(errors),
        images=result.images,
        errors=result.error_count,
        label_counts=result.label_counts,
        mean_confidence=result.mean_confidence,
        unreadable=result.errors,
        drift=result.drift,
    )


def _batch_metadata(record: BatchPredictions, reference: DriftReference | None) -> "dict[str, dg.RawMetadataValue]":
    from mnist_pipeline.ml.plots import drift_histograms, label_counts

    metadata: dict[str, dg.RawMetadataValue] = {
        "predictions": dg.MetadataValue.path(record.path),
        "images": record.images,
        "errors": record.errors,
        "model": record.model,
        "label_counts": table([{"label": label, "images": count} for label, count in enumerate(record.label_counts)]),
        "label_distribution": picture(label_counts(record.label_counts), "how often each label was predicted"),
    }
    if record.mean_confidence is not None:
        metadata["mean_confidence"] = record.mean_confidence
    if record.unreadable:
        metadata["unreadable"] = table([error.model_dump() for error in record.unreadable])
        metadata["errors_table"] = dg.MetadataValue.path(record.errors_path)
    if record.drift and reference:
        metadata["drifted_statistics"] = len(record.drift.drifted)
        metadata["drifted"] = ", ".join(record.drift.drifted) or "nothing"
        metadata["drift"] = table([finding.model_dump(exclude={"counts"}) for finding in record.drift.findings])
        metadata["drift_histograms"] = picture(drift_histograms(reference, record.drift), "validation split and batch")
    return metadata


class RealTimePredictionConfig(dg.Config, RealTimePredictionSettings):
    """The images to predict now; with none given, one test image of each class."""


@dg.asset(
    group_name=GROUP,
    kinds={"pytorch"},
    code_version="1",
    io_manager_key="record_io_manager",
    deps=[production_digit_classifier],
)
def digit_predictions(
    config: RealTimePredictionConfig, processed_mnist_data: Splits, model_store: ModelStoreResource
) -> dg.Output[DigitPredictions]:
    """Predictions for the images in the configuration, now, by the deployed model."""
    import numpy as np

    from mnist_pipeline.ml.images import ImageError, read_image
    from mnist_pipeline.ml.plots import predicted_images

    predictor = _deployed(model_store)
    images: list[tuple[str, np.ndarray]] = []
    for source, data in _requested(config):
        try:
            images.append((source, read_image(data)))
        except ImageError as error:
            raise dg.Failure(f"{source}: {error}", allow_retries=False) from error
    if not images:
        test = processed_mnist_data.test
        firsts = [(label, np.flatnonzero(test.labels == label)) for label in range(CLASSES)]
        images = [
            (f"{TEST_IMAGES} {found[0]} (a {label})", test.images[found[0]]) for label, found in firsts if len(found)
        ]
    stacked = np.stack([image for _, image in images])
    probabilities = predictor.predict(stacked)
    predictions = [
        Prediction(
            source=source,
            label=int(row.argmax()),
            confidence=float(row.max()),
            needs_review=bool(row.max() < config.confidence_threshold),
            probabilities=[float(p) for p in row] if config.include_probabilities else None,
        )
        for (source, _), row in zip(images, probabilities, strict=True)
    ]
    record = DigitPredictions(
        model=predictor.version, weights_sha256=predictor.manifest.weights_sha256, predictions=predictions
    )
    return dg.Output(
        record,
        data_version=dg.DataVersion(record.digest(exclude={"model"})),
        metadata={
            "model": record.model,
            "predictions": table([prediction.model_dump(exclude={"probabilities"}) for prediction in predictions]),
            "what_the_model_sees": picture(predicted_images(stacked, predictions), "prepared images and predictions"),
        },
    )


def _deployed(store: ModelStoreResource) -> "Predictor":
    from mnist_pipeline.ml.network import ModelError
    from mnist_pipeline.ml.predictor import NoDeployedModel, Predictor

    try:
        return Predictor.from_store(store)
    except (NoDeployedModel, UnknownModel, CorruptModel, ModelError) as error:  # a store out of reach is tried again
        raise dg.Failure(str(error), allow_retries=False) from error


def _existing(setting: str, names: list[str]) -> list[Path]:
    paths = [Path(name).expanduser() for name in names]
    if missing := [str(path) for path in paths if not path.exists()]:
        raise dg.Failure(f"{setting} that do not exist: {', '.join(missing)}", allow_retries=False)
    return paths


def _requested(config: RealTimePredictionSettings) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each image that the configuration asks for."""
    for path in _existing("image_paths", config.image_paths):
        try:
            yield str(path), path.read_bytes()
        except OSError as error:
            raise dg.Failure(
                f"{path} of image_paths cannot be read as a file: {error.strerror}. Folders are for "
                "input_paths of batch_digit_predictions",
                allow_retries=False,
            ) from error
    for position, text in enumerate(config.images_base64):
        source = f"images_base64[{position}]"
        try:
            yield source, b64decode(text, validate=True)
        except ValueError as error:  # also what is not ASCII
            raise dg.Failure(f"{source} is not base64: {error}", allow_retries=False) from error
