"""Texts of a safetensors file in memory, arrays that stay in their file, and arrays that are larger than memory."""

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from mnist_pipeline.files.errors import DataError

LENGTH_BYTES = 8
"""The format begins with the length of the header, little-endian, then comes the header as JSON (its README)."""

SCRATCH_BYTES = 64 << 20
"""The size from which arrays are put together in a file: smaller ones are no burden, and need no disk."""


def header_texts(data: bytes) -> dict[str, str]:
    """Return the texts that were stored beside the tensors. Raises ValueError if `data` is no safetensors file."""
    end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    header = json.loads(data[LENGTH_BYTES:end])
    texts = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(texts, dict):
        raise ValueError("the header holds no texts")
    return texts


def mapped(path: Path, name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays of uint8 in a safetensors file, which are read from there when they are used, and its texts.

    They need no memory of their own until they are written to, which does not change the file, and outlive its removal.
    Raises DataError, with `name`, if it is no whole safetensors file, or one of other numbers; OSError if it cannot be
    read.
    """
    with path.open("rb") as file:
        try:
            safe_open(f"/dev/fd/{file.fileno()}", "numpy")  # is the header sound, and the file as long as it says?
        except SafetensorError as error:
            raise DataError(f"{name} is damaged: {error}. Materialize the asset that it is of again") from error
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        tensors: dict[str, Any] = json.loads(file.read(length))
        texts: dict[str, str] = tensors.pop("__metadata__", None) or {}
        if others := sorted({tensor["dtype"] for tensor in tensors.values()} - {"U8"}):
            raise DataError(f"{name} holds numbers of the kinds {', '.join(others)}, not of U8 only")
        begin = LENGTH_BYTES + length
        return {
            name: _mapping(file, begin + tensor["data_offsets"][0], tuple(tensor["shape"]))
            for name, tensor in tensors.items()
        }, texts


def scratch(shape: tuple[int, ...]) -> np.ndarray:
    """Return zeros, uint8, to be written over; from SCRATCH_BYTES on they are in a temporary file, where TMPDIR says.

    The file has no name and goes when the array does. Raises OSError if there is no room for it.
    """
    size = math.prod(shape)
    if size < SCRATCH_BYTES:
        return np.zeros(shape, np.uint8)
    try:
        with tempfile.TemporaryFile() as file:
            if hasattr(os, "posix_fallocate"):  # else a full disk would end the process at some later write
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return _mapping(file, 0, shape, "r+")
    except OSError as error:
        said = f"no room in {tempfile.gettempdir()} (TMPDIR) for {size:,} bytes: {error.strerror}"
        raise OSError(error.errno, said) from error


def _mapping(file: Any, offset: int, shape: tuple[int, ...], mode: Any = "c") -> np.ndarray:
    if not math.prod(shape):  # nothing can be mapped
        return np.empty(shape, np.uint8)
    return np.asarray(np.memmap(file, np.uint8, mode, offset, shape))
