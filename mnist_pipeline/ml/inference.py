"""Batch predictions: from files of images to a Parquet table, in constant memory."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from mnist_pipeline.files import folders, storage
from mnist_pipeline.files.arrays import is_array, stored_arrays
from mnist_pipeline.files.errors import DataError
from mnist_pipeline.files.pictures import ImageError, is_image, require_size
from mnist_pipeline.ml.data import class_counts
from mnist_pipeline.ml.drift import DriftMonitor
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.ml.records import DriftReport, InputError
from mnist_pipeline.ml.review_items import Doubtful
from mnist_pipeline.task.preprocessing import read_image
from mnist_pipeline.task.spec import TaskSpec

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


class InputFile(NamedTuple):
    """A file to be read."""

    path: Path | UPath
    entry: folders.Entry | None
    """Its size and tag; None where it is no regular file, or could not be looked at."""
    problem: str | None = None
    """The reason for that."""

    @property
    def name(self) -> str:
        """The name in tables and metadata."""
        return folders.printable(str(self.path))


class Inputs(NamedTuple):
    """All files to be read, and those in their folders that are left out."""

    files: list[InputFile]
    left_out: dict[str, str]
    """The name of each, and why it does not count."""


def find_inputs(paths: Sequence[Path | UPath], links: folders.Links = "inside") -> Inputs:
    """Find the files that `paths` name, and in folders those that are images or arrays by their names.

    Which files of a folder count, and which links are followed, is told by `files.folders.walk`. Other files in folders
    (labels, notes) are passed over, but one that is named itself must be readable.
    """
    files: list[InputFile] = []
    left_out: dict[str, str] = {}
    for path in paths:
        if _is_folder(path):
            found = folders.walk(path, links)
            inside = ((path / name, entry) for name, entry in found.files.items())
            files += [InputFile(file, entry) for file, entry in inside if is_image(file.name) or is_array(file.name)]
            left_out |= {f"{path}/{name}": why for name, why in found.left_out.items()}
            continue
        try:
            files.append(InputFile(path, folders.entry(path)))
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not isinstance(path, Path):
                continue  # a prefix of a bucket exists no more when nothing is left below it
            files.append(InputFile(path, None, str(error)))
    return Inputs(files, left_out)


class ImageBatch(NamedTuple):
    """Some images and where each stood."""

    images: np.ndarray
    """uint8 (N, *spec.array_shape)."""
    sources: list[str]
    indices: list[int]
    """Position of each image in its source; 0 for an image file."""


def _is_folder(path: Path | UPath) -> bool:
    try:
        return storage.is_folder(path)
    except PermissionError:  # what lies in a folder that may not be looked into
        return False


def read_batches(inputs: Inputs, spec: TaskSpec, batch_size: int) -> Iterator[ImageBatch | InputError]:
    """Stream images out of files, at most `batch_size` at a time, in the order of their names.

    Image files are prepared like drawings and photos; IDX, npy and npz hold ready uint8 images of the shape of `spec`.
    What cannot be read comes as an InputError and does not stop the rest.
    """
    images: list[np.ndarray] = []
    sources: list[str] = []
    for file in inputs.files:
        if file.entry is None:
            yield InputError(source=file.name, error=file.problem or "it cannot be read")
        elif not is_array(file.path.name):
            try:
                require_size(file.entry.size)
                images.append(read_image(storage.read_bytes(file.path), spec))
                sources.append(file.name)
            except (ImageError, OSError) as error:
                yield InputError(source=file.name, error=folders.printable(str(error)))
            if len(images) == batch_size:
                yield ImageBatch(np.stack(images), sources, [0] * len(images))
                images, sources = [], []
        else:
            try:
                with stored_arrays(file.path) as arrays:
                    for array in arrays:
                        spec.require_images(array)
                    for array in arrays:
                        name = f"{file.name}:{array.name}" if array.name else file.name
                        yield from _batches(array.parts(batch_size), name)
            except (DataError, OSError) as error:
                yield InputError(source=file.name, error=folders.printable(str(error)))
    if images:
        yield ImageBatch(np.stack(images), sources, [0] * len(images))


def array_batches(images: np.ndarray, name: str, batch_size: int) -> Iterator[ImageBatch | InputError]:
    """Cut images that are in memory already into the same form."""
    parts = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    return _batches(parts, name)


def _batches(parts: Iterable[np.ndarray], name: str) -> Iterator[ImageBatch]:
    """Number the images of one source."""
    start = 0
    for part in parts:
        yield ImageBatch(part, [name] * len(part), list(range(start, start + len(part))))
        start += len(part)


class BatchResult(NamedTuple):
    """A summary of two tables that were written."""

    images: int
    errors: list[InputError]
    """The first hundred; the errors table has all."""
    error_count: int
    label_counts: list[int]
    mean_confidence: float | None
    unlike: int | None
    """The number of images unlike the training images; None where nothing was read or the model does not tell."""
    drift: DriftReport | None
    """The comparison with the reference; None where no image was read or the model has no reference."""


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


def inputs_digest(inputs: Inputs) -> str:
    """Return the SHA-256 (hex) of the names and contents of all that `read_batches` would read."""
    sha = hashlib.sha256()
    for file in inputs.files:
        sha.update(f"{file.path}\0".encode(errors="surrogateescape"))
        if file.entry and file.entry.tag:
            sha.update(f"{file.entry.tag}\0".encode())
            continue
        if file.entry is None:
            continue  # read_batches reports it
        try:
            folders.update(sha, file.path)
        except OSError as error:
            sha.update(f"unreadable: {error.strerror}".encode())
    return sha.hexdigest()
