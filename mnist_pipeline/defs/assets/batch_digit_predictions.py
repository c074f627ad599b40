"""A table of predictions for many images."""

import hashlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import dagster as dg
from upath import UPath

from mnist_pipeline.defs.assets.prediction_input import prediction_input
from mnist_pipeline.defs.assets.processed_mnist_data import processed_mnist_data
from mnist_pipeline.defs.assets.production_digit_classifier import production_digit_classifier
from mnist_pipeline.defs.conditions import cron_tick, on_cron_or_eager_if_data_changed
from mnist_pipeline.defs.metadata import LISTED_FILES, class_table, left_out, picture, short, table
from mnist_pipeline.defs.predicting import (
    BATCH_CODE_VERSION,
    batch_source,
    deployed_predictor,
    parts_name,
    predict_share,
)
from mnist_pipeline.defs.resources.folders import PredictionInputResource, PredictionsResource, ReviewResource
from mnist_pipeline.defs.resources.stores import ModelStoreResource
from mnist_pipeline.defs.reviewing import to_review
from mnist_pipeline.defs.training import CRASH_RETRIES
from mnist_pipeline.files.storage import exists, read_bytes, reading, write_bytes, writing
from mnist_pipeline.ml.records import BatchPredictions, Splits
from mnist_pipeline.ml.settings import DRIFT_P_VALUE, DRIFT_PSI, BatchPredictionSettings

if TYPE_CHECKING:
    from mnist_pipeline.ml.inputs import BatchSource
    from mnist_pipeline.ml.predictor import Predictor
    from mnist_pipeline.ml.review_items import Doubtful

CHANGED_INPUTS_WAIT_SECONDS = 10
SMALL_PICTURE_BYTES = 2000
"""Bars are seen all the same, and there are tables beside them."""

BATCH_POOL = "batch_predictions"
"""One at a time, so that two runs do not predict the same; apart from the pool of training. Parts (PREDICTION_PARTS)
take no place in it, since they are at work beside each other: those of two runs would write the same files."""

PREDICTIONS_FRESHNESS = dg.FreshnessPolicy.time_window(warn_window=timedelta(hours=26), fail_window=timedelta(hours=50))
"""One night missed, two nights missed; for a PREDICT_CRON that ticks less often than daily, change it too."""

LABEL_THEM = "on /review, or as LABELLED_DIR/<class>/<image>; RETRAIN_AFTER_LABELS of them start a training"
"""The way from images that are unlike the validation split to a model that knows them."""

CHECKS = [
    dg.AssetCheckSpec(
        "batch_predictions_are_sane",
        asset="batch_digit_predictions",
        description="The table is there, whole, within range, and not empty.",
    ),
    dg.AssetCheckSpec(
        "no_drift",
        asset="batch_digit_predictions",
        description="Warns when predictions or images look unlike the validation split of the model: "
        f"a population stability index above {DRIFT_PSI} with p below {DRIFT_P_VALUE}.",
    ),
]


class BatchPredictionConfig(dg.Config, BatchPredictionSettings):
    """The inputs of the batch predictions."""


@dg.asset(
    group_name="inference",
    kinds={"parquet"},
    code_version=BATCH_CODE_VERSION,
    pool=BATCH_POOL,
    io_manager_key="record_io_manager",
    output_required=False,
    deps=[production_digit_classifier, prediction_input],
    check_specs=CHECKS,
    dagster_type=dg.PythonObjectDagsterType(BatchPredictions),
    retry_policy=CRASH_RETRIES,
    freshness_policy=PREDICTIONS_FRESHNESS,
    # The test images are read, too, but it is a new model or input that sets predictions off.
    automation_condition=on_cron_or_eager_if_data_changed(
        cron_tick("PREDICT_CRON"), ignoring=frozenset({processed_mnist_data.key})
    ),
)
def batch_digit_predictions(
    context: dg.AssetExecutionContext,
    config: BatchPredictionConfig,
    processed_mnist_data: Splits,
    model_store: ModelStoreResource,
    predictions_dir: PredictionsResource,
    prediction_input_dir: PredictionInputResource,
    review_dir: ReviewResource,
) -> Iterator[dg.Output[BatchPredictions] | dg.AssetCheckResult]:
    """A Parquet table of label and confidence for every input image, by the deployed model, in constant memory.

    The inputs are those of the configuration, else of the folder PREDICTION_INPUT, else the test images. The same
    inputs are not predicted twice by the same model. The most doubtful of the inputs are to be looked at on /review.
    Yields no table while the folder is empty."""
    predictor = deployed_predictor(model_store, processed_mnist_data.spec)
    source = batch_source(config, processed_mnist_data, prediction_input_dir)
    if source.paths and not source.inputs.files:
        yield from _nothing_to_predict(context, source.paths)
        return
    digest = source.digest()
    name = f"{predictor.version}_{digest[:16]}_v{BATCH_CODE_VERSION}"
    _, _, record_path = predictions_dir.table_paths(name)
    record = _predicted_before(predictions_dir, record_path)
    more: dict[str, dg.RawMetadataValue] = {"predicted_before": record is not None}
    if record:
        context.log.info("%s predicted these inputs before, into %s", predictor.version, record.path)
    else:
        doubtful = doubtful_of(predictor, config)
        record = _predict(predictor, source, digest, predictions_dir, name, config, doubtful)
        if source.paths and source.digest(again=True) != digest:
            raise dg.RetryRequested(max_retries=3, seconds_to_wait=CHANGED_INPUTS_WAIT_SECONDS) from RuntimeError(
                "the inputs changed while they were read"
            )
        if source.paths:  # test images must not be labelled: they would train
            items = (doubt.item(predictor.spec, predictor.version) for doubt in doubtful.doubts())
            more |= to_review(context, review_dir, items, 2 * config.review_images)
        write_bytes(record_path, record.model_dump_json(indent=2).encode())  # last: it vouches for the table
    version = hashlib.sha256(f"{record.weights_sha256}{record.onnx_sha256}{digest}".encode()).hexdigest()
    yield dg.Output(
        record,
        data_version=dg.DataVersion(version),
        metadata={**_metadata(record, predictor, predictions_dir), **more, **left_out(source.inputs.left_out)},
    )
    yield from batch_prediction_checks(record, predictions_dir)


def doubtful_of(predictor: "Predictor", config: BatchPredictionConfig) -> "Doubtful":
    """Return what will keep the most doubtful images, by the settings of a run."""
    from mnist_pipeline.ml.coverage import review_threshold
    from mnist_pipeline.ml.review_items import Doubtful

    return Doubtful(review_threshold(predictor.manifest, config), config.review_images)


def _predicted_before(predictions: PredictionsResource, path: UPath) -> BatchPredictions | None:
    if not exists(path):
        return None
    record = BatchPredictions.model_validate_json(read_bytes(path))
    table, errors, _ = predictions.table_paths(PurePath(record.path).stem)  # it may have been moved since
    moved = record.model_copy(update={"path": str(table), "errors_path": str(errors)})
    return moved if all(exists(file) for file in predictions.table_files(moved)) else None


def _nothing_to_predict(
    context: dg.AssetExecutionContext, paths: "Sequence[Path | UPath]"
) -> Iterator[dg.AssetCheckResult]:
    nothing = f"there is nothing to predict in {', '.join(map(str, paths))}"
    context.log.info(nothing)
    for spec in CHECKS:
        yield dg.AssetCheckResult(
            check_name=spec.name, passed=False, severity=dg.AssetCheckSeverity.WARN, description=nothing
        )


def _predict(
    predictor: "Predictor",
    source: "BatchSource",
    digest: str,
    predictions: PredictionsResource,
    name: str,
    config: BatchPredictionConfig,
    doubtful: "Doubtful",
) -> BatchPredictions:
    """Predict in one go into a table, or what steps of parts left to do, into a data set of them."""
    from mnist_pipeline.ml.inference import predict_to_parquet
    from mnist_pipeline.ml.inputs import Share
    from mnist_pipeline.ml.parts import merged

    parts = predictions.parts
    table, errors, _ = predictions.table_paths(name if parts == 1 else parts_name(predictor, source, parts, config))
    if parts == 1:
        with writing(table) as table_file, writing(errors) as errors_file:  # the table appears last
            result = predict_to_parquet(predictor, source.batches(), table_file, errors_file, doubtful)
    else:
        shares = [Share(part, parts) for part in range(parts)]
        results = [predict_share(predictor, source, predictions, share, config, doubtful) for share in shares]
        result = merged(results, predictor)
    return BatchPredictions(
        model=predictor.version,
        weights_sha256=predictor.manifest.weights_sha256,
        onnx_sha256=predictor.manifest.onnx_sha256,
        inputs_digest=digest,
        path=str(table),
        errors_path=str(errors),
        parts=parts,
        images=result.images,
        errors=result.error_count,
        label_counts=result.label_counts,
        mean_confidence=result.mean_confidence,
        unlike_training_data=result.unlike,
        unreadable=result.errors,
        drift=result.drift,
    )


def _metadata(
    record: BatchPredictions, predictor: "Predictor", predictions: PredictionsResource
) -> "dict[str, dg.RawMetadataValue]":
    from mnist_pipeline.ml.drift import where_it_drifted
    from mnist_pipeline.ml.plots import drift_histograms, label_counts

    spec, reference = predictor.spec, predictor.manifest.training.drift_reference
    metadata: dict[str, dg.RawMetadataValue] = {
        "predictions": dg.MetadataValue.path(record.path),
        "images": record.images,
        "errors": record.errors,
        "model": record.model,
        "label_counts": class_table(spec, {"images": record.label_counts}),
        "label_distribution": picture(
            label_counts(record.label_counts, spec), "how often each label was predicted", SMALL_PICTURE_BYTES
        ),
    }
    if record.mean_confidence is not None:
        metadata["mean_confidence"] = record.mean_confidence
    if record.unlike_training_data is not None:
        metadata["unlike_training_data"] = record.unlike_training_data
    if record.unreadable:
        listed = record.unreadable[:LISTED_FILES]
        metadata["unreadable"] = table([{"source": short(e.source), "error": short(e.error)} for e in listed])
        metadata["errors_table"] = dg.MetadataValue.path(record.errors_path)
    if record.drift and reference:
        metadata["drifted_statistics"] = len(record.drift.drifted)
        metadata["drifted"] = ", ".join(record.drift.drifted) or "nothing"
        if shifted := where_it_drifted(reference, record.drift, spec):
            metadata["what_to_label"] = f"{'; '.join(shifted)}. Label such images: {LABEL_THEM}"
        metadata["drift"] = table([finding.model_dump(exclude={"counts"}) for finding in record.drift.findings])
        path = predictions.drift_path(record)
        if not exists(path):
            write_bytes(path, drift_histograms(reference, record.drift, spec))
        metadata["drift_histograms"] = dg.MetadataValue.path(str(path))
    return metadata


def batch_prediction_checks(
    batch_digit_predictions: BatchPredictions, predictions_dir: PredictionsResource
) -> Iterator[dg.AssetCheckResult]:
    """Yield the results of CHECKS."""
    import pyarrow.parquet as pq

    record = batch_digit_predictions
    rows, problems = 0, dict[str, None]()  # each once, in order
    for path in predictions_dir.table_files(record):
        with reading(path) as file, pq.ParquetFile(file) as table:
            rows += table.metadata.num_rows
            for batch in table.iter_batches():
                confidence, label = (batch[name].to_numpy() for name in ("confidence", "label"))
                if not ((confidence > 0) & (confidence <= 1 + 1e-6)).all() or label.max() >= len(record.label_counts):
                    problems["labels or confidences are out of range"] = None
                if batch["model"].unique().to_pylist() != [record.model]:
                    problems[f"rows of another model than {record.model}"] = None
    if not rows:
        problems[f"no image was predicted, {record.errors} could not be read"] = None
    if rows != record.images:
        problems[f"the table has {rows} rows, but {record.images} images were predicted"] = None
    yield dg.AssetCheckResult(
        check_name="batch_predictions_are_sane",
        passed=not problems,
        description="; ".join(problems) or None,
        metadata={"rows": rows, "errors": record.errors},
    )
    if record.drift is None:
        description = f"there is nothing to compare with: no image, or {record.model} was saved without a reference"
    else:
        description = f"unlike the validation split: {', '.join(record.drift.drifted) or 'nothing'}"
    yield dg.AssetCheckResult(
        check_name="no_drift",
        passed=record.drift is not None and not record.drift.drifted,
        severity=dg.AssetCheckSeverity.WARN,
        description=description,
        metadata={
            f"population_stability_index_of_{finding.statistic}": finding.population_stability_index
            for finding in (record.drift.findings if record.drift else [])
        },
    )
