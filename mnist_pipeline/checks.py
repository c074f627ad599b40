"""Asset checks. One step an asset, so that its value is read once."""

from collections.abc import Iterator

import dagster as dg

from mnist_pipeline.assets.data import processed_mnist_data, raw_mnist_data
from mnist_pipeline.assets.deployment import production_digit_classifier
from mnist_pipeline.assets.model import digit_classifier, model_evaluation
from mnist_pipeline.assets.predictions import PredictionsResource, batch_digit_predictions, digit_predictions
from mnist_pipeline.ml.records import BatchPredictions, Dataset, DigitPredictions, Evaluation, ModelRecord, Splits
from mnist_pipeline.ml.settings import CLASSES, DRIFT_P_VALUE, DRIFT_PSI
from mnist_pipeline.ml.storage import storage_path
from mnist_pipeline.stores.base import ModelStoreResource

WARN = dg.AssetCheckSeverity.WARN

MAX_CLASS_SHARE_DIFFERENCE = 0.02
"""Rounding of a stratified split stays far below; labelled digits may move the training shares up to here."""

USUAL_VALIDATION_FRACTION = (0.05, 0.5)
"""Less chooses the best epoch by chance, more leaves too little to train on."""

ROUNDING = 1e-9


@dg.multi_asset_check(
    specs=[
        dg.AssetCheckSpec("complete", asset=raw_mnist_data, description="Shapes, sizes, and every class 0..9 present."),
        dg.AssetCheckSpec("full_data_set", asset=raw_mnist_data, description="Warns while the sample stands in."),
    ],
    ins={"raw_mnist_data": dg.AssetIn("raw_mnist_data")},
)
def raw_data_checks(raw_mnist_data: Dataset) -> Iterator[dg.AssetCheckResult]:
    from mnist_pipeline.ml.data import DataError, class_counts, validate

    problems = []
    for name, part in (("train", raw_mnist_data.train), ("test", raw_mnist_data.test)):
        try:
            validate(part, name)
        except DataError as error:
            problems.append(str(error))
            continue
        if absent := [label for label, count in enumerate(class_counts(part.labels)) if not count]:
            problems.append(f"{name} has no image of the classes {absent}")
    yield dg.AssetCheckResult(check_name="complete", passed=not problems, description="; ".join(problems) or None)
    images = len(raw_mnist_data.train.labels) + len(raw_mnist_data.test.labels)
    yield dg.AssetCheckResult(
        check_name="full_data_set",
        passed=not raw_mnist_data.is_sample,
        severity=WARN,
        description=f"{images:,} of 70,000 images: {raw_mnist_data.description}" if raw_mnist_data.is_sample else None,
        metadata={"images": images},
    )


@dg.multi_asset_check(
    specs=[
        dg.AssetCheckSpec("class_balance", asset=processed_mnist_data, description="Train and validation alike."),
        dg.AssetCheckSpec(
            "nothing_lost",
            asset=processed_mnist_data,
            additional_deps=[raw_mnist_data],
            description="Every raw image is in one split.",
        ),
        dg.AssetCheckSpec(
            "split_proportions",
            asset=processed_mnist_data,
            description="Warns of an unusually small or large validation split.",
        ),
        dg.AssetCheckSpec(
            "no_leakage", asset=processed_mnist_data, description="No validation or test image in train."
        ),
    ],
    ins={"processed_mnist_data": dg.AssetIn("processed_mnist_data"), "raw_mnist_data": dg.AssetIn("raw_mnist_data")},
)
def processed_data_checks(processed_mnist_data: Splits, raw_mnist_data: Dataset) -> Iterator[dg.AssetCheckResult]:
    import numpy as np

    from mnist_pipeline.ml.data import class_counts, content_digest, missing_images, shared_images

    train, validation, test = processed_mnist_data
    shares = [np.array(class_counts(part.labels)) / len(part.labels) for part in (train, validation)]
    difference = float(np.abs(shares[0] - shares[1]).max())
    yield dg.AssetCheckResult(
        check_name="class_balance",
        passed=difference <= MAX_CLASS_SHARE_DIFFERENCE,
        description=f"the share of a class differs by up to {difference:.4f}, allowed {MAX_CLASS_SHARE_DIFFERENCE}",
        metadata={"largest_difference": difference},
    )
    # Labelled digits may add to train; nothing may be missing, and test is handed on untouched.
    kept = not missing_images(raw_mnist_data.train, [train, validation])
    untouched = content_digest(test) == content_digest(raw_mnist_data.test)
    yield dg.AssetCheckResult(
        check_name="nothing_lost",
        passed=kept and untouched,
        metadata={
            "all_training_images_kept": kept,
            "test_untouched": untouched,
        },
    )
    fraction = len(validation.labels) / len(raw_mnist_data.train.labels)
    low, high = USUAL_VALIDATION_FRACTION
    yield dg.AssetCheckResult(
        check_name="split_proportions",
        passed=low <= fraction <= high,
        severity=WARN,
        description=f"{fraction:.3f} of the training images validate; usual is {low} to {high}",
        metadata={"validation_fraction": fraction},
    )
    in_test, in_validation = shared_images(train, test), shared_images(train, validation)
    yield dg.AssetCheckResult(
        check_name="no_leakage",
        passed=not in_test and not in_validation,
        description=f"{in_test} test and {in_validation} validation images stand in train too",
        metadata={"test_images_in_train": in_test, "validation_images_in_train": in_validation},
    )


@dg.asset_check(asset=digit_classifier, description="The stored candidate is whole, finite, and the one trained.")
def stored_candidate_is_sound(digit_classifier: ModelRecord, model_store: ModelStoreResource) -> dg.AssetCheckResult:
    from mnist_pipeline.ml.network import ModelError, model_from_bytes
    from mnist_pipeline.stores.errors import ModelStoreError

    try:
        manifest, weights = model_store.load(digit_classifier.name)
        model_from_bytes(weights, manifest.settings)
    except (ModelStoreError, ModelError) as error:
        return dg.AssetCheckResult(passed=False, description=str(error))
    same = manifest.weights_sha256 == digit_classifier.weights_sha256
    return dg.AssetCheckResult(passed=same, description=None if same else "the store has other weights by this name")


@dg.asset_check(asset=model_evaluation, description="Accuracy, support and counts agree with the confusion matrix.")
def scores_agree(model_evaluation: Evaluation) -> dg.AssetCheckResult:
    import numpy as np

    problems = []
    for name, scores in (("validation", model_evaluation.validation), ("test", model_evaluation.test)):
        matrix = np.array(scores.confusion_matrix)
        if matrix.shape != (CLASSES, CLASSES) or matrix.sum() != scores.images or not scores.images:
            problems.append(f"{name}: the confusion matrix holds {matrix.sum()} of {scores.images} images")
            continue
        if abs(np.trace(matrix) / matrix.sum() - scores.accuracy) > ROUNDING:
            problems.append(f"{name}: accuracy {scores.accuracy} is not {np.trace(matrix) / matrix.sum()}")
        if matrix.sum(1).tolist() != [metrics.support for metrics in scores.per_class]:
            problems.append(f"{name}: supports differ from the rows of the confusion matrix")
        if not np.isfinite([scores.loss, scores.expected_calibration_error]).all():
            problems.append(f"{name}: loss or calibration error is not finite")
    return dg.AssetCheckResult(passed=not problems, description="; ".join(problems) or None)


@dg.asset_check(
    asset=production_digit_classifier,
    blocking=True,
    description="What is deployed loads, has the digest of its manifest, and gives finite outputs; "
    "otherwise nothing is predicted with it.",
)
def deployed_model_works(model_store: ModelStoreResource) -> dg.AssetCheckResult:
    from mnist_pipeline.ml.network import ModelError
    from mnist_pipeline.ml.predictor import NoDeployedModel, Predictor
    from mnist_pipeline.stores.errors import ModelStoreError

    try:
        predictor = Predictor.from_store(model_store)
        predictor.verify()
    except (ModelStoreError, ModelError, NoDeployedModel) as error:
        return dg.AssetCheckResult(passed=False, description=f"{error}. Roll back, or deploy another version")
    return dg.AssetCheckResult(passed=True, metadata={"model": predictor.version})


@dg.multi_asset_check(
    specs=[
        dg.AssetCheckSpec(
            "batch_predictions_are_sane",
            asset=batch_digit_predictions,
            description="The table is there, whole, within range, and not empty.",
        ),
        dg.AssetCheckSpec(
            "no_drift",
            asset=batch_digit_predictions,
            description="Warns when predictions or images look unlike the validation split of the model: "
            f"a population stability index above {DRIFT_PSI} with p below {DRIFT_P_VALUE}.",
        ),
    ],
    ins={"batch_digit_predictions": dg.AssetIn("batch_digit_predictions")},
)
def batch_prediction_checks(
    batch_digit_predictions: BatchPredictions, predictions_dir: PredictionsResource
) -> Iterator[dg.AssetCheckResult]:
    import pyarrow.parquet as pq

    record = batch_digit_predictions
    path = storage_path(record.path, predictions_dir.endpoint_url)
    with path.open("rb") as file, pq.ParquetFile(file) as table:
        rows, problems = table.metadata.num_rows, []
        for batch in table.iter_batches():
            confidence, label = (batch[name].to_numpy() for name in ("confidence", "label"))
            if not ((confidence > 0) & (confidence <= 1 + 1e-6)).all() or label.max() >= CLASSES:
                problems.append("labels or confidences are out of range")
            if batch["model"].unique().to_pylist() != [record.model]:
                problems.append(f"rows of another model than {record.model}")
    if not rows:
        problems.append(f"no image was predicted, {record.errors} could not be read")
    if rows != record.images:
        problems.append(f"the table has {rows} rows, but {record.images} images were predicted")
    yield dg.AssetCheckResult(
        check_name="batch_predictions_are_sane",
        passed=not problems,
        description="; ".join(problems) or None,
        metadata={"rows": rows},
    )
    if record.drift is None:
        description = f"there is nothing to compare with: no image, or {record.model} was saved without a reference"
    else:
        description = f"unlike the validation split: {', '.join(record.drift.drifted) or 'nothing'}"
    yield dg.AssetCheckResult(
        check_name="no_drift",
        passed=record.drift is not None and not record.drift.drifted,
        severity=WARN,
        description=description,
    )


@dg.asset_check(asset=digit_predictions, description="There are predictions, within range.")
def digit_predictions_are_sane(digit_predictions: DigitPredictions) -> dg.AssetCheckResult:
    predictions = digit_predictions.predictions
    wrong = [p.source for p in predictions if not (0 <= p.label < CLASSES and 0 < p.confidence <= 1 + 1e-6)]
    return dg.AssetCheckResult(
        passed=bool(predictions) and not wrong,
        description=f"out of range: {', '.join(wrong)}" if wrong else None if predictions else "there is no prediction",
    )


ALL_CHECKS = [
    raw_data_checks,
    processed_data_checks,
    stored_candidate_is_sound,
    scores_agree,
    deployed_model_works,
    batch_prediction_checks,
    digit_predictions_are_sane,
]
