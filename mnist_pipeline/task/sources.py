"""The sources of raw data: a folder of IDX files, a download, a sample, or a folder of image files."""

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from mnist_pipeline.files import atomic
from mnist_pipeline.files.arrays import read_idx
from mnist_pipeline.files.errors import DataError
from mnist_pipeline.task.dataset import Dataset, DatasetSettings, LabelledImages, scale, validate
from mnist_pipeline.task.download import DownloadError, download
from mnist_pipeline.task.known import Known, known
from mnist_pipeline.task.spec import TaskSpec

log = logging.getLogger(__name__)

FAILURE_NOTE = "download-failed"
FAILURE_COUNTS_SECONDS = 86400
"""A download that failed is not tried again at each run, which can take minutes where a network swallows packets."""


def load_dataset(settings: DatasetSettings, mirrors: Sequence[str] | None = None) -> Dataset:
    """Return the verified raw data set.

    Its directory holds the files, or takes the downloaded ones. The source `auto` takes the first that works of
    directory, download, and, where there is one, the sample. `mirrors` are base URLs ending in a slash, those of the
    data set by default. A download that failed is tried again by `auto` after a day.

    Raises DataError when the source that was asked for is missing, incomplete or corrupt. Files that are
    there but corrupt are an error with `auto` too: nobody wants the sample in their place.
    """
    if settings.dataset == "folder":
        from mnist_pipeline.task.image_folder import load_folder

        return load_folder(settings)
    files, directory, source = known(settings.dataset), Path(settings.directory), settings.source
    if source == "sample":
        if not files.sample:
            raise DataError(f"there is no sample of {files.name}: DATASET_SOURCE is directory or download")
        return files.sample("DATASET_SOURCE is 'sample'")
    if source == "directory" or (source == "auto" and (not files.torchvision or _is_complete(files, directory))):
        return load_directory(directory, files)
    if not files.torchvision:
        raise DataError(f"it is not known where {files.name} could be downloaded: DATASET_SOURCE is directory")
    note = directory / FAILURE_NOTE
    if source == "auto" and files.sample and _is_recent(note):
        log.info("no mirror gave the files within a day (%s); DATASET_SOURCE=download asks at once", note)
        return files.sample(f"no IDX files in {directory}, and no mirror gave them within a day")
    try:
        download(files, directory, mirrors)
        note.unlink(missing_ok=True)
    except DownloadError as error:
        if source == "download" or not files.sample:
            raise
        if _find_folder(files, directory):  # a part of the data is there: by hand, or from a download that broke off
            raise DataError(
                f"only a part of {files.name} is in {directory}, and the rest cannot be fetched: {error}"
            ) from error
        with suppress(OSError):  # a folder that cannot be written to: then it is tried again each time
            atomic.write_bytes(note, str(error).encode())
        return files.sample(f"no IDX files in {directory}, and no mirror gave them")
    return load_directory(directory, files)


def load_directory(directory: Path, data_set: Known) -> Dataset:
    """Read the four IDX files, gzipped or not, in `directory` or in torchvision's layout below it.

    Raises DataError with the file's name if one is missing, truncated or not what its name says.
    """
    folder = _find_folder(data_set, directory)
    if folder is None:
        raise DataError(
            f"no files of {data_set.name} in {directory}: expected {', '.join(data_set.files)}, each plain or with "
            f".gz, there or in {Path(data_set.torchvision) / 'raw'}. Set DATASET_DIR to the folder that has them, or "
            "DATASET_SOURCE to "
            f"{'download or sample' if data_set.sample else 'download'}"
        )
    files = (_plain_or_gz(folder, name) for name in data_set.files)
    train_images, train_labels, test_images, test_labels = (read_idx(file) for file in files)
    train, test = _as_known(train_images, train_labels, data_set), _as_known(test_images, test_labels, data_set)
    spec = _spec(data_set, train.images)
    for part, name in ((train, data_set.files[0]), (test, data_set.files[2])):
        validate(part, str(folder / name), spec)
    return Dataset(train, test, f"IDX files in {folder}", is_sample=False, spec=spec)


def _as_known(images: np.ndarray, labels: np.ndarray, data_set: Known) -> LabelledImages:
    """Images upright, labels counted from 0; a label below the first one becomes 255, which `validate` refuses."""
    upright = np.ascontiguousarray(images.swapaxes(1, 2)) if data_set.transposed and images.ndim == 3 else images
    return LabelledImages(upright, labels - labels.dtype.type(data_set.first_label))


def _spec(data_set: Known, train_images: np.ndarray) -> TaskSpec:
    if data_set.spec:
        return data_set.spec
    spec = TaskSpec(
        name=data_set.name,
        pictures=data_set.pictures,
        class_names=data_set.class_names,
        image_shape=data_set.image_shape,
        mean=(0.0,) * data_set.image_shape[2],
        std=(1.0,) * data_set.image_shape[2],
    )
    if train_images.dtype != np.uint8 or train_images.shape[1:] != spec.array_shape or not len(train_images):
        return spec  # `validate` says what is wrong
    mean, std = scale(train_images)
    return spec.model_copy(update={"mean": mean, "std": std})


def _is_recent(note: Path) -> bool:
    return note.exists() and 0 <= time.time() - note.stat().st_mtime < FAILURE_COUNTS_SECONDS


def _is_complete(data_set: Known, directory: Path) -> bool:
    folder = _find_folder(data_set, directory)
    return folder is not None and all(_plain_or_gz(folder, name).exists() for name in data_set.files)


def _find_folder(data_set: Known, directory: Path) -> Path | None:
    """The folder that has at least one of the files, also where torchvision puts them; None if none has."""
    for folder in (directory, directory / data_set.torchvision / "raw"):
        if any(_plain_or_gz(folder, name).exists() for name in data_set.files):
            return folder
    return None


def _plain_or_gz(folder: Path, name: str) -> Path:
    plain = folder / name
    return plain if plain.exists() else folder / f"{name}.gz"
