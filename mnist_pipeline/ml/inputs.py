"""The inputs of batch predictions: files of images, found, divided into shares, and read in constant memory."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from upath import UPath

from mnist_pipeline.files import folders, storage
from mnist_pipeline.files.arrays import is_array, stored_arrays
from mnist_pipeline.files.errors import DataError
from mnist_pipeline.files.pictures import ImageError, is_image, require_size
from mnist_pipeline.ml.data import content_digest
from mnist_pipeline.ml.records import InputError
from mnist_pipeline.task.dataset import LabelledImages
from mnist_pipeline.task.preprocessing import read_image
from mnist_pipeline.task.spec import TaskSpec


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


class Share(NamedTuple):
    """One of several parts of the inputs, which have every so many image files, and batches of arrays, each."""

    part: int
    """The number of the part, from 0."""
    parts: int

    def has(self, position: int) -> bool:
        """Return whether the file or batch at a position belongs to it."""
        return position % self.parts == self.part


WHOLE = Share(0, 1)


class BatchSource:
    """All that is to be predicted: files, or images that are in memory already."""

    def __init__(
        self,
        paths: Sequence[Path | UPath],
        links: folders.Links,
        held: LabelledImages | None,
        name: str,
        spec: TaskSpec,
        batch_size: int,
    ) -> None:
        """`held` are images in place of files, whose source is called `name`; folders are looked into at once."""
        self.paths, self._links, self._held, self._name = paths, links, held, name
        self._spec, self._batch_size = spec, batch_size
        self.inputs = find_inputs(paths, links)

    def batches(self, share: Share = WHOLE) -> Iterator[ImageBatch | InputError]:
        """Stream a share of the images, in constant memory."""
        if self._held is None:
            return read_batches(self.inputs, self._spec, self._batch_size, share)
        return array_batches(self._held.images, self._name, self._batch_size, share)

    def digest(self, again: bool = False) -> str:
        """Return the SHA-256 (hex) of all content; `again` of what is there now."""
        if self._held is not None:
            return self._arrays_digest
        return inputs_digest(find_inputs(self.paths, self._links) if again else self.inputs)

    def share_digest(self, share: Share) -> str:
        """Return two SHA-256 (hex): of all arrays, of which each share has batches, and of the share's image files."""
        files = enumerate(self.inputs.files)
        images = [file for position, file in files if share.has(position) and not is_array(file.path.name)]
        return f"{self._arrays_digest} {inputs_digest(Inputs(images, {}))}"

    @cached_property
    def _arrays_digest(self) -> str:
        """Read once, however many shares there are."""
        if self._held is not None:
            return content_digest(self._held)
        return inputs_digest(Inputs([file for file in self.inputs.files if is_array(file.path.name)], {}))

    def fingerprint(self) -> str:
        """Return a digest by which it can be told without reading the files if they may be others."""
        return self.digest() if self._held is not None else inputs_fingerprint(self.inputs)


def read_batches(
    inputs: Inputs, spec: TaskSpec, batch_size: int, share: Share = WHOLE
) -> Iterator[ImageBatch | InputError]:
    """Stream images out of files, at most `batch_size` at a time, in the order of their names.

    Image files are prepared like drawings and photos; IDX, npy and npz hold ready uint8 images of the shape of `spec`.
    What cannot be read comes as an InputError, of one share only, and does not stop the rest.
    """
    images: list[np.ndarray] = []
    sources: list[str] = []
    for position, file in enumerate(inputs.files):
        if not share.has(position) and (file.entry is None or not is_array(file.path.name)):
            continue
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
                        yield from _batches(array.parts(batch_size), name, share, position)
            except (DataError, OSError) as error:
                if share.has(position):
                    yield InputError(source=file.name, error=folders.printable(str(error)))
    if images:
        yield ImageBatch(np.stack(images), sources, [0] * len(images))


def array_batches(
    images: np.ndarray, name: str, batch_size: int, share: Share = WHOLE
) -> Iterator[ImageBatch | InputError]:
    """Cut images that are in memory already into the same form."""
    parts = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    return _batches(parts, name, share, 0)


def _batches(parts: Iterable[np.ndarray], name: str, share: Share, position: int) -> Iterator[ImageBatch]:
    """Number the images of one source, and give the share's batches of them; `position` is that of the source."""
    start = 0
    for number, part in enumerate(parts):
        if share.has(position + number):
            yield ImageBatch(part, [name] * len(part), list(range(start, start + len(part))))
        start += len(part)


def inputs_fingerprint(inputs: Inputs) -> str:
    """Return the SHA-256 (hex) of names, sizes and times of change: without reading, whether they may be others."""
    sha = hashlib.sha256()
    for file in inputs.files:
        known = (file.entry.size, file.entry.tag or file.entry.changed.timestamp()) if file.entry else ()
        sha.update(f"{file.path}\0{known}\0".encode(errors="surrogateescape"))
    return sha.hexdigest()


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
