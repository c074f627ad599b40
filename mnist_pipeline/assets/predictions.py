"""Group inference: predictions by what is deployed."""

from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
from pydantic import Field

from mnist_pipeline.assets.metadata import picture, table
from mnist_pipeline.assets.model import production_digit_classifier
from mnist_pipeline.ml.records import BatchPredictions, DigitPredictions, Prediction, Splits
from mnist_pipeline.ml.settings import CLASSES, BatchPredictionSettings, RealTimePredictionSettings
from mnist_pipeline.stores.base import ModelStoreResource

GROUP = "inference"
TEST_IMAGES = "test images"


class PredictionsResource(dg.ConfigurableResource):
    """Where tables of predictions go."""

    location: str = Field(description="Folder, or s3://bucket/prefix.")
    endpoint_url: str | None = Field(None, description="For stores that speak S3 but are not Amazon's.")


class BatchPredictionConfig(dg.Config, BatchPredictionSettings):
    """What the batch predictions read and how."""


@dg.asset(
    group_name=GROUP,
    kinds={"parquet"},
    code_version="1",
    io_manager_key="record_io_manager",
    deps=[production_digit_classifier],
)
def batch_digit_predictions(
    context: dg.AssetExecutionContext,
    config: BatchPredictionConfig,
    processed_mnist_data: Splits,
    model_store: ModelStoreResource,
    predictions_dir: PredictionsResource,
) -> dg.Output[BatchPredictions]:
    """A Parquet table of label and confidence for every input image, by the deployed model, in constant memory."""
    import hashlib
    import tempfile

    from mnist_pipeline.io_managers import storage_path, upload
    from mnist_pipeline.ml.data import content_digest
    from mnist_pipeline.ml.inference import Predictor, array_batches, inputs_digest, predict_to_parquet, read_batches
    from mnist_pipeline.ml.plots import label_counts

    predictor = Predictor.from_store(model_store)
    paths = _existing("input_paths", config.input_paths)
    if paths:
        digest, batches = inputs_digest(paths), read_batches(paths, config.batch_size)
    else:
        digest = content_digest(processed_mnist_data.test)
        batches = array_batches(processed_mnist_data.test.images, TEST_IMAGES, config.batch_size)
    # One table for each pair of model and inputs: predicting the same again replaces it by itself.
    name = f"{predictor.version}_{digest[:16]}"
    folder = storage_path(predictions_dir.location, predictions_dir.endpoint_url)
    table_path, errors_path = folder / f"{name}.parquet", folder / f"{name}.errors.parquet"
    with tempfile.TemporaryDirectory() as scratch:
        table_file, errors_file = Path(scratch) / "table.parquet", Path(scratch) / "errors.parquet"
        result = predict_to_parquet(predictor, batches, table_file, errors_file)
        upload(errors_file, errors_path)
        upload(table_file, table_path)
    for error in result.errors:
        context.log.warning("%s was left out: %s", error.source, error.error)
    record = BatchPredictions(
        model=predictor.version,
        weights_sha256=predictor.manifest.weights_sha256,
        inputs_digest=digest,
        path=str(table_path),
        errors_path=str(errors_path),
        images=result.images,
        errors=result.error_count,
        label_counts=result.label_counts,
        mean_confidence=result.mean_confidence,
    )
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
    if result.errors:
        metadata["unreadable"] = table([error._asdict() for error in result.errors])
        metadata["errors_table"] = dg.MetadataValue.path(record.errors_path)
    version = hashlib.sha256(f"{record.weights_sha256}{digest}".encode()).hexdigest()
    return dg.Output(record, data_version=dg.DataVersion(version), metadata=metadata)


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
    from mnist_pipeline.ml.inference import Predictor
    from mnist_pipeline.ml.plots import predicted_images

    predictor = Predictor.from_store(model_store)
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
