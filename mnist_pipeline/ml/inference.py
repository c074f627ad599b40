"""Batch predictions: from files of images to a Parquet table, in constant memory."""

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from mnist_pipeline.files import atomic, folders
from mnist_pipeline.files.errors import DataError
from mnist_pipeline.files.idx import read_idx
from mnist_pipeline.files.pictures import ImageError, is_image
from mnist_pipeline.ml.data import class_counts
from mnist_pipeline.ml.drift import DriftMonitor
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.ml.records import DriftReport, InputError
from mnist_pipeline.task.preprocessing import read_image
from mnist_pipeline.task.spec import TaskSpec

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
IDX_ENDINGS = ("-ubyte", "-ubyte.gz", ".idx", ".idx.gz")

PREDICTIONS_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("label", pa.uint8(), nullable=False),
        pa.field("confidence", pa.float32(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
    ]
)
ERRORS_SCHEMA = pa.schema(
    [pa.field("source", pa.string(), nullable=False), pa.field("error", pa.string(), nullable=False)]
)


class ImageBatch(NamedTuple):
    """Some images and where each stood."""

    images: np.ndarray
    """uint8 (N, *spec.array_shape)."""
    sources: list[str]
    indices: list[int]
    """Position of each image in its source; 0 for an image file."""


def read_batches(paths: Sequence[Path], spec: TaskSpec, batch_size: int) -> Iterator[ImageBatch | InputError]:
    """Stream images out of files and folders, at most `batch_size` at a time, in the order of their names.

    Image files are prepared like drawings and photos; IDX, npy and npz hold ready uint8 images of the shape of `spec`.
    What cannot be read comes as an InputError and does not stop the rest. Files in folders that are no images
    by their name (labels, notes) are passed over, but one that is named itself must be readable.
    """
    images: list[np.ndarray] = []
    sources: list[str] = []
    for path in _expand(paths):
        if not _is_array(path):
            try:
                images.append(read_image(path.read_bytes()))
                sources.append(str(path))
            except (ImageError, OSError) as error:
                yield InputError(source=str(path), error=str(error))
            if len(images) == batch_size:
                yield ImageBatch(np.stack(images), sources, [0] * len(images))
                images, sources = [], []
            continue
        try:
            for name, array in _read_arrays(path):
                spec.require_images(array)
                yield from array_batches(array, name, batch_size)
        except (DataError, OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            yield InputError(source=str(path), error=str(error))
    if images:
        yield ImageBatch(np.stack(images), sources, [0] * len(images))


def array_batches(images: np.ndarray, name: str, batch_size: int) -> Iterator[ImageBatch | InputError]:
    """Cut images that are in memory already into the same form."""
    for start in range(0, len(images), batch_size):
        part = np.array(images[start : start + batch_size])  # a copy: torch wants writable memory, mapped is not
        yield ImageBatch(part, [name] * len(part), list(range(start, start + len(part))))


class BatchResult(NamedTuple):
    """A summary of two tables that were written."""

    images: int
    errors: list[InputError]
    """The first hundred; the errors table has all."""
    error_count: int
    label_counts: list[int]
    mean_confidence: float | None
    drift: DriftReport | None
    """The comparison with the reference; None where no image was read or the model has no reference."""


MAX_LISTED_ERRORS = 100


def predict_to_parquet(
    predictor: Predictor, batches: Iterator[ImageBatch | InputError], table: Path, error_table: Path
) -> BatchResult:
    """Predict in constant memory into two Parquet files, which appear whole or not at all."""
    reference = predictor.manifest.training.drift_reference
    monitor = DriftMonitor(reference) if reference else None
    counts, total_confidence, error_count = np.zeros(predictor.spec.classes, np.int64), 0.0, 0
    listed: list[InputError] = []
    with ExitStack() as stack:
        writers = [
            stack.enter_context(pq.ParquetWriter(stack.enter_context(atomic.replacing(path)), schema))
            for path, schema in ((error_table, ERRORS_SCHEMA), (table, PREDICTIONS_SCHEMA))
        ]
        for batch in batches:
            if isinstance(batch, InputError):
                error_count += 1
                listed += [batch] if len(listed) < MAX_LISTED_ERRORS else []
                writers[0].write_table(pa.table([[batch.source], [batch.error]], schema=ERRORS_SCHEMA))
                continue
            probabilities = predictor.predict(batch.images)
            labels, confidences = probabilities.argmax(1).astype(np.uint8), probabilities.max(1)
            if monitor:
                monitor.add(batch.images, probabilities)
            counts += class_counts(labels, predictor.spec)
            total_confidence += float(confidences.sum(dtype=np.float64))
            columns = [batch.sources, batch.indices, labels, confidences, [predictor.version] * len(labels)]
            writers[1].write_table(pa.table(columns, schema=PREDICTIONS_SCHEMA))
    images = int(counts.sum())
    return BatchResult(
        images=images,
        errors=listed,
        error_count=error_count,
        label_counts=counts.tolist(),
        mean_confidence=total_confidence / images if images else None,
        drift=monitor.report() if monitor and images else None,
    )


def inputs_digest(paths: Sequence[Path]) -> str:
    """Return the SHA-256 (hex) of the names and contents of all that `read_batches` would read."""
    sha = hashlib.sha256()
    for path in _expand(paths):
        sha.update(f"{path}\0".encode())
        try:
            folders.update(sha, path)
        except OSError as error:  # read_batches reports it
            sha.update(f"unreadable: {error.strerror}".encode())
    return sha.hexdigest()


def is_empty(paths: Sequence[Path]) -> bool:
    """Return whether `read_batches` would find nothing to read."""
    return next(_expand(paths), None) is None


def _expand(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            inside = (path / name for name in folders.visible_files(UPath(path)))
            yield from (found for found in inside if is_image(found) or _is_array(found))
        else:
            yield path


def _is_array(path: Path) -> bool:
    return path.suffix.lower() in ARRAY_SUFFIXES or path.name.lower().endswith(IDX_ENDINGS)


def _read_arrays(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and content of each array in the file; npy files are mapped, not read."""
    if path.suffix.lower() == ".npy":
        array = np.lib.format.open_memmap(path, mode="r")  # refuses pickled objects
        yield str(path), array
    elif path.suffix.lower() == ".npz":
        if not zipfile.is_zipfile(path):
            raise DataError("not a whole npz file")
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                if not isinstance(array := archive[name], np.ndarray):
                    raise DataError(f"{name} in it is not an array")
                yield f"{path}:{name}", array
    else:
        yield str(path), read_idx(path)
