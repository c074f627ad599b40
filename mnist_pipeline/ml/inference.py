"""Batch predictions: from images to a Parquet table, in constant memory."""

from collections.abc import Iterator
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from mnist_pipeline.ml.data import class_counts
from mnist_pipeline.ml.drift import DriftMonitor
from mnist_pipeline.ml.inputs import ImageBatch
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.ml.records import DriftReport, InputError, Record
from mnist_pipeline.ml.review_items import Doubtful

PREDICTIONS_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("label", pa.uint8(), nullable=False),
        pa.field("class", pa.dictionary(pa.uint8(), pa.string()), nullable=False),
        pa.field("confidence", pa.float32(), nullable=False),
        pa.field("unlike_training_data", pa.bool_()),  # null of a model from before this was told
        pa.field("model", pa.string(), nullable=False),
    ]
)
ERRORS_SCHEMA = pa.schema(
    [pa.field("source", pa.string(), nullable=False), pa.field("error", pa.string(), nullable=False)]
)


class BatchResult(Record):
    """A summary of two tables that were written."""

    images: int
    errors: list[InputError] = Field(description="The first hundred; the errors table has all.")
    error_count: int
    label_counts: list[int]
    mean_confidence: float | None
    unlike: int | None = Field(
        description="Images unlike the training images; None where nothing was read or the model does not tell."
    )
    drift: DriftReport | None = Field(description="None where no image was read or the model has no reference.")


MAX_LISTED_ERRORS = 100


def predict_to_parquet(
    predictor: Predictor,
    batches: Iterator[ImageBatch | InputError],
    table: IO[bytes],
    error_table: IO[bytes],
    doubtful: Doubtful | None = None,
) -> BatchResult:
    """Predict in constant memory into two Parquet files, which are open for writing.

    `doubtful` is shown all images and answers, too.
    """
    reference = predictor.manifest.training.drift_reference
    monitor = DriftMonitor(reference, predictor.spec) if reference else None
    counts, total_confidence, error_count = np.zeros(predictor.spec.classes, np.int64), 0.0, 0
    unlike_count: int | None = None
    listed: list[InputError] = []
    names = pa.array(predictor.spec.class_names)
    with (
        pq.ParquetWriter(error_table, ERRORS_SCHEMA) as error_writer,
        pq.ParquetWriter(table, PREDICTIONS_SCHEMA) as writer,
    ):
        for batch in batches:
            if isinstance(batch, InputError):
                error_count += 1
                listed += [batch] if len(listed) < MAX_LISTED_ERRORS else []
                error_writer.write_table(pa.table([[batch.source], [batch.error]], schema=ERRORS_SCHEMA))
                continue
            answers = predictor.answer(batch.images)
            probabilities, unlike = answers.probabilities, answers.unlike
            labels, confidences = probabilities.argmax(1).astype(np.uint8), probabilities.max(1)
            if unlike is not None:
                unlike_count = (unlike_count or 0) + int(unlike.sum())
            if doubtful:
                doubtful.add(batch.images, answers)
            if monitor:
                monitor.add(batch.images, probabilities)
            counts += class_counts(labels, predictor.spec)
            total_confidence += float(confidences.sum(dtype=np.float64))
            columns = [
                batch.sources,
                batch.indices,
                labels,
                pa.DictionaryArray.from_arrays(labels, names),
                confidences,
                pa.nulls(len(labels), pa.bool_()) if unlike is None else unlike,
                [predictor.version] * len(labels),
            ]
            writer.write_table(pa.table(columns, schema=PREDICTIONS_SCHEMA))
    images = int(counts.sum())
    return BatchResult(
        images=images,
        errors=listed,
        error_count=error_count,
        label_counts=counts.tolist(),
        mean_confidence=total_confidence / images if images else None,
        unlike=unlike_count,
        drift=monitor.report() if monitor and images else None,
    )
