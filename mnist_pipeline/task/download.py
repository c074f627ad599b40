"""The download of a data set with a name: whole files only, with bounds of size and time."""

import hashlib
import http.client
import logging
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path

from mnist_pipeline.files import atomic
from mnist_pipeline.files.errors import DataError
from mnist_pipeline.task.known import Known

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 20
CHUNK_BYTES = 1 << 20
PROGRESS_BYTES = 100 << 20
"""So often a large download says how far it is."""
MAX_SECONDS = 3600
"""A mirror that is slower with one file is given up."""
MAX_FILE_BYTES = 100 << 20
MAX_ARCHIVE_BYTES = 1 << 30
"""The largest archive of a known data set has 536 MiB."""


class DownloadError(DataError):
    """No mirror gave a whole, genuine file."""


def download(known: Known, directory: Path, mirrors: Sequence[str] | None = None) -> None:
    """Fetch the four gzipped IDX files into `directory`, each verified by torchvision's MD5 before it appears.

    Files that are there already are kept, so running it again continues. `mirrors` are base URLs ending in a slash,
    torchvision's by default. Raises DownloadError.
    """
    if known.archive:
        _download_archive(known, directory, mirrors or known.mirrors)
        return
    for name in (f"{file}.gz" for file in known.files):
        path = directory / name
        if path.exists() and _md5_of(path) == _md5(known, name):
            log.info("%s is there already", path)
        else:
            _fetch(known, path, mirrors or known.mirrors, MAX_FILE_BYTES)


def _download_archive(known: Known, directory: Path, mirrors: Sequence[str]) -> None:
    assert known.archive
    if all((directory / f"{name}.gz").exists() for name in known.files):  # whole, and from a verified archive
        return
    archive, inside = directory / known.archive.parts[0], known.archive.relative_to(known.archive.parts[0])
    if not (archive.exists() and _md5_of(archive) == _md5(known, archive.name)):
        _fetch(known, archive, mirrors, MAX_ARCHIVE_BYTES)
    try:
        with zipfile.ZipFile(archive) as opened:
            for name in (f"{file}.gz" for file in known.files):
                member = opened.getinfo(str(inside / name))
                if member.file_size > MAX_FILE_BYTES:
                    raise DownloadError(f"{archive}: {name} has {member.file_size:,} bytes, which no file has")
                with atomic.replacing(directory / name) as temporary, temporary.open("wb") as target:
                    shutil.copyfileobj(opened.open(member), target)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DownloadError(f"{archive} is not the archive that it should be: {error}") from error
    archive.unlink()


def _fetch(known: Known, path: Path, mirrors: Sequence[str], most: int) -> None:
    """Download from the first mirror that has it, to a temporary file that becomes `path` only if it is genuine."""
    failures = []
    for mirror in mirrors:
        try:
            _fetch_from(mirror + path.name, path, known, most)
            return
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            failures.append(f"{mirror + path.name}: {error}")
            log.warning("download failed: %s", failures[-1])
    raise DownloadError(
        f"{'; '.join(failures)}. Try again, or put {', '.join(known.files)}, plain or with .gz, into {path.parent} "
        "(DATASET_DIR)"
    )


def _fetch_from(url: str, path: Path, known: Known, most: int) -> None:
    digest, received, deadline = hashlib.md5(usedforsecurity=False), 0, time.monotonic() + MAX_SECONDS
    with atomic.replacing(path) as temporary:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, temporary.open("wb") as file:
            while chunk := response.read1(CHUNK_BYTES):
                if received // PROGRESS_BYTES < (received := received + len(chunk)) // PROGRESS_BYTES:
                    log.info("%s: %d MiB", url, received >> 20)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"it did not arrive within {MAX_SECONDS} s")
                if received > most:
                    raise ValueError(f"it has more than {most:,} bytes, which no file of the data set has")
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != (md5 := _md5(known, path.name)):
            raise ValueError(f"got {received} bytes with MD5 {digest.hexdigest()}, expected MD5 {md5}")
    log.info("downloaded %s", url)


def _md5_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _md5(known: Known, name: str) -> str:
    """The checksum, from torchvision, which takes seconds to import and is asked only about files that arrived."""
    from torchvision import datasets

    described = getattr(datasets, known.torchvision)
    return described.md5 if known.archive else dict(described.resources)[name]
