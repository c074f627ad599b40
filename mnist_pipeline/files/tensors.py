"""The texts in the header of a safetensors file, which the library tells of files on this machine only."""

import json

LENGTH_BYTES = 8
"""The format begins with the length of the header, little-endian, then comes the header as JSON (its README)."""


def header_texts(data: bytes) -> dict[str, str]:
    """Return the texts that were stored beside the tensors. Raises ValueError if `data` is no safetensors file."""
    end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    header = json.loads(data[LENGTH_BYTES:end])
    texts = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(texts, dict):
        raise ValueError("the header holds no texts")
    return texts
