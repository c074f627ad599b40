"""Arrays in files from anybody: IDX, npy and npz, plain or compressed, read a part at a time.

A header says how much is to come, and may lie; a compressed file of a megabyte may unpack to gigabytes. So a file is
read twice: once to see that it holds what its headers say, and then a part at a time. Neither needs more memory than a
part and the list of arrays, whatever the file says.
"""

import gzip
import io
import lzma
import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np
from upath import UPath

from mnist_pipeline.files import storage
from mnist_pipeline.files.errors import DataError

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
IDX_ENDINGS = ("-ubyte", "-ubyte.gz", ".idx", ".idx.gz")

UNSIGNED_BYTES = 0x08
"""The type code of unsigned bytes in the header of an IDX file (Y. LeCun's description of the format)."""

MAX_DIMENSIONS = 8
MAX_HEADER_BYTES = 10_000
MAX_ARRAYS = 10_000
CHUNK_BYTES = 1 << 20
PART_ROWS = 4096
"""Rows that are read at a time into an array of all."""

MAX_GROWTH, ALWAYS_ALLOWED_BYTES = 200, 64 << 20
"""A compressed file may unpack to so many times its size, or to so much anyway. Images are packed to a tenth or so."""

DAMAGE = (
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError, OverflowError, MemoryError, RecursionError),
    *(TypeError, LookupError, AttributeError, SyntaxError, tokenize.TokenError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
"""The errors that gzip, zipfile and numpy raise on files that are damaged, encrypted or packed in unknown ways."""


class StoredArray(NamedTuple):
    """An array in a file that is open, and known to hold all of it."""

    name: str
    """The name within the file; empty where there is one array only."""
    dtype: np.dtype
    shape: tuple[int, ...]
    open: Callable[[], IO[bytes]]
    """Opens the stream from its beginning."""

    def parts(self, rows: int) -> Iterator[np.ndarray]:
        """Yield at most so many rows at a time, in order."""
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        stream = self.open()
        _read_header(stream)
        for start in range(0, self.shape[0], rows):
            count = min(rows, self.shape[0] - start)
            data = _exactly(stream, count * row_bytes)
            yield np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])


def is_array(name: str) -> bool:
    """Return whether the name has the ending of a file of arrays."""
    return Path(name).suffix.lower() in ARRAY_SUFFIXES or name.lower().endswith(IDX_ENDINGS)


@contextmanager
def stored_arrays(path: Path | UPath) -> Iterator[list[StoredArray]]:
    """Open a file and give the arrays in it, once each was seen to be whole.

    Raises DataError, with what was expected, if it is of no known form, damaged, encrypted, or would unpack to far more
    than its size; FileNotFoundError if it is missing.
    """
    with storage.reading(path) as file, _damage_refused(path):
        size = file.seek(0, os.SEEK_END)
        allowed = max(ALWAYS_ALLOWED_BYTES, MAX_GROWTH * size)
        arrays = []
        for name, opener in _streams(file, path):
            arrays.append(array := _verified(name, opener, allowed))
            allowed -= math.prod(array.shape) * array.dtype.itemsize
        yield arrays


def read_idx(path: Path | UPath) -> np.ndarray:
    """Return an IDX file of unsigned bytes, gzipped if its name ends in .gz, as a uint8 array of its own shape.

    Raises DataError, with what was expected, for anything else.
    """
    try:
        with stored_arrays(path) as [array]:
            whole = np.empty(array.shape, array.dtype)
            for start, part in zip(range(0, len(whole), PART_ROWS), array.parts(PART_ROWS), strict=True):
                whole[start : start + PART_ROWS] = part
            return whole
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None


def _streams(file: IO[bytes], path: Path | UPath) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """Name and opener of each stream in the file."""

    def rewound() -> IO[bytes]:
        file.seek(0)
        return file

    suffix = path.suffix.lower()
    if suffix == ".npz":
        archive = zipfile.ZipFile(file)
        members = archive.infolist()
        if len(members) > MAX_ARRAYS:
            raise DataError(f"it holds {len(members):,} arrays, more than {MAX_ARRAYS:,}")
        for member in members:
            yield member.filename.removesuffix(".npy"), partial(archive.open, member)
    elif suffix == ".gz":
        yield "", lambda: cast(IO[bytes], gzip.GzipFile(fileobj=rewound()))
    else:
        yield "", rewound


def _verified(name: str, opener: Callable[[], IO[bytes]], allowed: int) -> StoredArray:
    """The array of a stream, after all of it was read and thrown away."""
    stream = opener()
    dtype, shape = _read_header(stream)
    expected = math.prod(shape) * dtype.itemsize
    if expected > allowed:
        raise DataError(
            f"it should hold {expected:,} bytes for its shape {list(shape)}, more than a file of its size may unpack to"
        )
    found = 0
    while found <= expected and (chunk := stream.read(CHUNK_BYTES)):
        found += len(chunk)
    if found != expected:
        more = "more" if found > expected else f"{found}"
        raise DataError(
            f"it should hold {expected} bytes for its shape {list(shape)}, but holds {more}: fetch it again"
        )
    return StoredArray(name, dtype, shape, opener)


def _read_header(stream: IO[bytes]) -> tuple[np.dtype, tuple[int, ...]]:
    """Read the header of IDX or npy up to the first byte of the data."""
    start = stream.read(4)
    if start[:3] == bytes([0, 0, UNSIGNED_BYTES]) and len(start) == 4:
        if not 1 <= start[3] <= MAX_DIMENSIONS:
            raise DataError(f"it says that it has {start[3]} dimensions, and not 1 to {MAX_DIMENSIONS}")
        sizes = stream.read(4 * start[3])
        if len(sizes) < 4 * start[3]:
            raise DataError("it is not an IDX file: its header ends too early")
        return np.dtype(np.uint8), tuple(np.frombuffer(sizes, ">u4").tolist())
    if start != np.lib.format.MAGIC_PREFIX[:4]:
        raise DataError(f"it is not an IDX file of unsigned bytes, nor npy: it begins with {start.hex() or 'nothing'}")
    magic = start + _exactly(stream, np.lib.format.MAGIC_LEN - len(start))
    if magic[:-2] != np.lib.format.MAGIC_PREFIX:
        raise DataError(f"it is not an npy file: it begins with {magic.hex()}")
    first = magic[-2] == 1
    length = _exactly(stream, 2 if first else 4)
    if (size := int.from_bytes(length, "little")) > MAX_HEADER_BYTES:  # numpy reads it before it looks at the length
        raise DataError(f"its header has {size:,} bytes, more than {MAX_HEADER_BYTES:,}")
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(io.BytesIO(length + _exactly(stream, size)))
    if dtype.hasobject:
        raise DataError("it holds Python objects, which are not read")
    if fortran and len(shape) > 1:
        raise DataError("it is stored column by column: save np.ascontiguousarray of it")
    if not shape or min(shape) < 0:
        raise DataError(f"it has the shape {shape}")
    return dtype, shape


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise DataError("it ends too early")
    return data


@contextmanager
def _damage_refused(path: Path | UPath) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except DAMAGE as error:
        raise DataError(f"{path} is truncated, damaged, encrypted or packed in an unknown way ({error})") from error
