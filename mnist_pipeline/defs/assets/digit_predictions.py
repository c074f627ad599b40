"""Predictions for the images of one run's configuration."""

from base64 import b64decode
from collections.abc import Iterator

import dagster as dg

from mnist_pipeline.defs.assets.production_digit_classifier import production_digit_classifier
from mnist_pipeline.defs.conditions import NEVER
from mnist_pipeline.defs.metadata import picture, table
from mnist_pipeline.defs.predicting import TEST_IMAGES, deployed_predictor, existing_paths
from mnist_pipeline.defs.resources.folders import PredictionInputResource
from mnist_pipeline.defs.resources.stores import ModelStoreResource
from mnist_pipeline.files.folders import entry
from mnist_pipeline.files.pictures import ImageError, require_size
from mnist_pipeline.files.storage import read_bytes
from mnist_pipeline.ml.records import Prediction, RealTimePredictions, Splits
from mnist_pipeline.ml.settings import RealTimePredictionSettings


class RealTimePredictionConfig(dg.Config, RealTimePredictionSettings):
    """The images to predict now; with none given, one test image of each class."""


@dg.asset(
    group_name="inference",
    kinds={"onnx"},
    code_version="1",
    io_manager_key="record_io_manager",
    deps=[production_digit_classifier],
    automation_condition=NEVER,
    dagster_type=dg.PythonObjectDagsterType(RealTimePredictions),
    check_specs=[
        dg.AssetCheckSpec(
            "digit_predictions_are_sane",
            asset="digit_predictions",
            description="There are predictions, within range.",
        )
    ],
)
def digit_predictions(
    config: RealTimePredictionConfig,
    processed_mnist_data: Splits,
    model_store: ModelStoreResource,
    prediction_input_dir: PredictionInputResource,
) -> Iterator[dg.Output[RealTimePredictions] | dg.AssetCheckResult]:
    """Predictions for the images in the configuration, now, by the deployed model."""
    import numpy as np

    from mnist_pipeline.ml.coverage import review_threshold
    from mnist_pipeline.ml.plots import predicted_images
    from mnist_pipeline.task.preprocessing import read_image

    predictor = deployed_predictor(model_store, processed_mnist_data.spec)
    images: list[tuple[str, np.ndarray]] = []
    for source, data in _requested(config, prediction_input_dir.endpoint_url):
        try:
            images.append((source, read_image(data, predictor.spec)))
        except ImageError as error:
            raise dg.Failure(f"{source}: {error}", allow_retries=False) from error
    if not images:
        test, names = processed_mnist_data.test, predictor.spec.class_names
        firsts = [(name, np.flatnonzero(test.labels == label)) for label, name in enumerate(names)]
        images = [
            (f"{TEST_IMAGES} {found[0]} (a {name})", test.images[found[0]]) for name, found in firsts if len(found)
        ]
    stacked = np.stack([image for _, image in images])
    answers, threshold = predictor.answer(stacked), review_threshold(predictor.manifest, config)
    unlike = [None] * len(stacked) if answers.unlike is None else answers.unlike.tolist()
    predictions = [
        Prediction(
            source=source,
            label=int(row.argmax()),
            class_name=predictor.spec.class_names[int(row.argmax())],
            confidence=float(row.max()),
            needs_review=float(row.max()) < threshold,
            unlike_training_data=strange,
            probabilities=[float(p) for p in row] if config.include_probabilities else None,
        )
        for (source, _), row, strange in zip(images, answers.probabilities, unlike, strict=True)
    ]
    record = RealTimePredictions(
        model=predictor.version,
        weights_sha256=predictor.manifest.weights_sha256,
        onnx_sha256=predictor.manifest.onnx_sha256,
        predictions=predictions,
    )
    seen = predicted_images(stacked, predictions, predictor.spec)
    yield dg.Output(
        record,
        data_version=dg.DataVersion(record.digest(exclude={"model"})),
        metadata={
            "model": record.model,
            "confidence_threshold": threshold,
            "predictions": table([prediction.model_dump(exclude={"probabilities"}) for prediction in predictions]),
            "what_the_model_sees": picture(seen, "prepared images and predictions"),
        },
    )
    yield digit_predictions_are_sane(record, predictor.spec.classes)


def _requested(config: RealTimePredictionSettings, endpoint_url: str | None) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each image that the configuration asks for."""
    for path in existing_paths("image_paths", config.image_paths, endpoint_url):
        try:
            require_size(entry(path).size)
            yield str(path), read_bytes(path)
        except (OSError, ImageError) as error:
            raise dg.Failure(
                f"{path} of image_paths cannot be read as a file: {error}. Folders are for "
                "input_paths of batch_digit_predictions",
                allow_retries=False,
            ) from error
    for position, text in enumerate(config.images_base64):
        source = f"images_base64[{position}]"
        try:
            yield source, b64decode(text, validate=True)
        except ValueError as error:  # also what is not ASCII
            raise dg.Failure(f"{source} is not base64: {error}", allow_retries=False) from error


def digit_predictions_are_sane(digit_predictions: RealTimePredictions, classes: int) -> dg.AssetCheckResult:
    """Look whether there are predictions, of one of so many classes, with a probability."""
    predictions = digit_predictions.predictions
    wrong = [p.source for p in predictions if not (0 <= p.label < classes and 0 < p.confidence <= 1 + 1e-6)]
    return dg.AssetCheckResult(
        passed=bool(predictions) and not wrong,
        description=f"out of range: {', '.join(wrong)}" if wrong else None if predictions else "there is no prediction",
        metadata={
            "predictions": len(predictions),
            "least_confidence": min((p.confidence for p in predictions), default=0.0),
        },
    )
