"""IDX files (Y. LeCun): a header of type and sizes, then the numbers."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from upath import UPath

from mnist_pipeline.files.errors import DataError
from mnist_pipeline.files.storage import read_bytes

UNSIGNED_BYTES = 0x08
"""Type code of unsigned bytes in the header (Y. LeCun's description of the format)."""


def read_idx(path: Path | UPath) -> np.ndarray:
    """Return an IDX file of unsigned bytes, gzipped if its name ends in .gz, as a uint8 array of its own shape.

    Raises DataError, with what was expected, for anything else.
    """
    try:
        content = read_bytes(path)
        blob = gzip.decompress(content) if path.suffix == ".gz" else content
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is truncated or not a gzip file ({error}): fetch it again") from error
    dimensions = blob[3] if len(blob) >= 4 else 0
    header = 4 + 4 * dimensions
    if blob[:3] != bytes([0, 0, UNSIGNED_BYTES]) or len(blob) < header:
        raise DataError(f"{path} is not an IDX file of unsigned bytes: it begins with {blob[:4].hex() or 'nothing'}")
    shape = np.frombuffer(blob, ">u4", count=dimensions, offset=4).tolist()
    if len(blob) - header != math.prod(shape):
        raise DataError(
            f"{path} should hold {math.prod(shape)} bytes for its shape {shape}, but holds {len(blob) - header}: "
            "fetch it again"
        )
    return np.frombuffer(blob, np.uint8, offset=header).reshape(shape).copy()
