"""Batch predictions in parts: a share of the inputs each, on whatever machine, and one summary of them."""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, Field
from upath import UPath

from mnist_pipeline.files.storage import exists, read_bytes, write_bytes, writing
from mnist_pipeline.ml.drift import DriftMonitor
from mnist_pipeline.ml.inference import MAX_LISTED_ERRORS, BatchResult, predict_to_parquet
from mnist_pipeline.ml.inputs import BatchSource, Share
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.ml.records import part_file
from mnist_pipeline.ml.review_items import Doubtful


class PartSummary(BaseModel, frozen=True):
    """The record that vouches for the files of a part."""

    inputs_digest: str = Field(description="`BatchSource.share_digest` when it was predicted.")
    result: BatchResult


def predict_part(
    predictor: Predictor, source: BatchSource, share: Share, table: UPath, errors: UPath, doubtful: Doubtful
) -> BatchResult:
    """Predict a share of the inputs into the data sets `table` and `errors`, a file each, unless it was done before.

    `doubtful` is shown the most doubtful images of the share. A part that was killed has left nothing that counts: the
    summary in the folder of errors is written last. Nor does one count of which a file is missing, or whose share had
    another content.
    """
    name, digest = part_file(share.part), source.share_digest(share)
    summary, images = errors / f"_{name}.json", errors / f"_{name}.safetensors"  # readers of Parquet pass over these
    if all(exists(path) for path in (summary, images, table / name, errors / name)):
        before = PartSummary.model_validate_json(read_bytes(summary))
        if before.inputs_digest == digest:
            doubtful.merge(read_bytes(images))
            return before.result
    own = doubtful.empty()
    with writing(table / name) as file, writing(errors / name) as error_file:
        result = predict_to_parquet(predictor, source.batches(share), file, error_file, own)
    write_bytes(images, content := own.to_bytes())
    write_bytes(summary, PartSummary(inputs_digest=digest, result=result).model_dump_json().encode())
    doubtful.merge(content)
    return result


def merged(results: Sequence[BatchResult], predictor: Predictor) -> BatchResult:
    """Return the summary of all parts: the same as if they had been predicted in one."""
    images = sum(result.images for result in results)
    reference, drift = predictor.manifest.training.drift_reference, None
    if reference and images:
        monitor = DriftMonitor(reference, predictor.spec)
        for result in results:
            if result.drift:
                monitor.merge(result.drift)
        drift = monitor.report()
    unlike = [result.unlike for result in results if result.unlike is not None]
    confidence = sum(result.images * result.mean_confidence for result in results if result.mean_confidence is not None)
    return BatchResult(
        images=images,
        errors=[error for result in results for error in result.errors][:MAX_LISTED_ERRORS],
        error_count=sum(result.error_count for result in results),
        label_counts=np.sum([result.label_counts for result in results], axis=0).tolist(),
        mean_confidence=confidence / images if images else None,
        unlike=sum(unlike) if unlike else None,
        drift=drift,
    )
