"""The decoding of a request's body to prepared images.

Nothing here waits or knows the network, so it runs in any thread."""

import binascii
from base64 import b64decode
from collections.abc import Callable, Iterator
from email.message import Message
from typing import Any

import numpy as np
from PIL import Image
from pydantic_core import from_json
from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import File

from mnist_pipeline.files.pictures import ImageError, TooManyPixels
from mnist_pipeline.serve.errors import ServiceError, bad_request, too_large, unusable
from mnist_pipeline.serve.settings import FORMATS, ServeSettings
from mnist_pipeline.task.preprocessing import prepare, read_image
from mnist_pipeline.task.spec import TaskSpec

ACCEPTED = (
    f"send an image file ({', '.join(FORMATS)}) as the body or as multipart/form-data, or JSON: "
    '{"image": ...} or {"images": [...]}, each a base64 image file or an array of 0..255 of the shape that /model tells'
)

MAX_CONTENT_TYPE = 512
JSON_BYTES = 1 << 20
"""A JSON text holds up all threads while it is parsed."""

QUICK_BYTES = 8 << 10
QUICK_PIXELS = 128 * 128
"""Reading no more than this takes about a millisecond, and ten at worst (texts and scans in it are unpacked, too), for
which a request need not go to another thread."""


class NotQuick(Exception):
    """Reading the request will take its time."""


def read_images(
    body: bytes, content_type: str, settings: ServeSettings, spec: TaskSpec, *, quick: bool = False
) -> np.ndarray:
    """Return the prepared images of a request: uint8 (N, *spec.array_shape), N > 0, in their order.

    Raises ServiceError with status 400, 413, 415 or 422; with `quick`, NotQuick in place of long work.
    """
    if quick and len(body) > QUICK_BYTES:
        raise NotQuick
    budget = left = int(settings.max_megapixels * 1_000_000)

    def admit(width: int, height: int) -> None:
        nonlocal left
        left -= width * height
        if left < 0:
            raise TooManyPixels(f"a picture of {width}x{height}: all in one request may have {budget:,} pixels")
        if quick and width * height > QUICK_PIXELS:
            raise NotQuick

    images: list[np.ndarray] = []
    for position, content in enumerate(_contents(body, content_type, settings.max_images)):
        if quick and position:
            raise NotQuick
        try:
            images.append(_image(content, spec, admit))
        except ServiceError as error:
            if position:
                error.message = f"image {position + 1}: {error.message}"
            raise
    if not images:
        raise bad_request("no_image", f"there is no image in the request: {ACCEPTED}")
    return np.stack(images)


def read_array(value: list[Any], spec: TaskSpec) -> np.ndarray:
    """Return a nested list as uint8 of `spec.array_shape`. Raises ServiceError."""
    shape = "x".join(map(str, spec.array_shape))
    expected = f"an array must be {shape} whole numbers from 0 to 255"
    # Before numpy sees them: it would make all as wide as the longest text.
    values: list[Any] = [value]
    for length in spec.array_shape:
        if any(not isinstance(row, list) or len(row) != length for row in values):
            raise unusable("bad_array", f"{expected}, but it has another shape")
        values = [number for row in values for number in row]
    if set(map(type, values)) != {int}:
        raise unusable("bad_array", f"{expected}, but it has fractions, words or other values")
    if min(values) < 0 or max(values) > 255:
        raise unusable("bad_array", f"{expected}, but there are values below or above")
    return np.array(value, np.uint8)


def parse_content_type(content_type: str) -> Message:
    """Return the header as an object that knows its type and its parameters. Raises ServiceError if it is too long."""
    if len(content_type) > MAX_CONTENT_TYPE:  # the time to parse it grows with its square
        raise bad_request("bad_content_type", f"a Content-Type may have {MAX_CONTENT_TYPE} characters")
    header = Message()
    header["Content-Type"] = content_type
    return header


def read_json(body: bytes) -> dict[str, Any]:
    """Return a JSON object. Raises ServiceError."""
    try:
        content = from_json(body)
    except ValueError as error:
        raise bad_request("bad_json", f"the body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise bad_request("bad_json", "the body must be a JSON object")
    return content


def _contents(body: bytes, content_type: str, at_most: int) -> Iterator[bytes | list[Any]]:
    """Each image as it was sent: the bytes of a file, or an array."""
    header = parse_content_type(content_type)
    kind = header.get_content_type() if content_type else ""
    if kind == "multipart/form-data":
        try:
            boundary = header.get_param("boundary")
        except (TypeError, ValueError):
            boundary = None
        yield from _files(body, boundary, at_most)
    elif kind == "application/json":
        if len(body) > JSON_BYTES:
            raise too_large(f"JSON may have {JSON_BYTES >> 20} MiB: send larger images as files")
        yield from _json_contents(read_json(body), at_most)
    elif kind == "application/octet-stream" or header.get_content_maintype() == "image":
        if body:
            yield body
    else:
        given = f"{content_type!r} is not accepted" if content_type else "the Content-Type is missing"
        raise ServiceError(415, "unsupported_media_type", f"{given}: {ACCEPTED}")


def _too_many(at_most: int) -> ServiceError:
    return too_large(f"more than {at_most} images in one request: send several requests")


def _files(body: bytes, boundary: Any, at_most: int) -> list[bytes]:
    if not isinstance(boundary, str) or not boundary:
        raise bad_request("bad_form", "the Content-Type of a form needs a boundary")
    files: list[bytes] = []
    parts = 0

    def count(_: object) -> None:
        nonlocal parts
        parts += 1
        if parts > at_most:
            raise _too_many(at_most)

    def keep(file: File) -> None:
        count(file)
        file.file_object.seek(0)
        files.append(file.file_object.read())
        file.close()

    in_memory = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
    try:
        parser = FormParser("multipart/form-data", count, keep, boundary=boundary, config=in_memory)
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise bad_request("bad_form", f"the form cannot be read: {error}") from None
    return files


def _json_contents(content: dict[str, Any], at_most: int) -> Iterator[bytes | list[Any]]:
    if unknown := sorted(content.keys() - {"image", "images"}):
        raise bad_request("bad_json", f"unknown name {unknown[0][:50]!r}: {ACCEPTED}")
    if len(content) != 1:
        raise bad_request("bad_json", f"give either image or images: {ACCEPTED}")
    values = [content["image"]] if "image" in content else content["images"]
    if not isinstance(values, list):
        raise bad_request("bad_json", f"images must be a list: {ACCEPTED}")
    if len(values) > at_most:
        raise _too_many(at_most)
    for value in values:
        if isinstance(value, list):
            yield value
        elif isinstance(value, str):
            try:
                yield b64decode(value, validate=True)
            except (binascii.Error, ValueError) as error:
                raise bad_request("bad_base64", f"the text is not base64: {error}") from None
        else:
            raise bad_request("bad_json", f"an image is neither text nor an array: {ACCEPTED}")


def _image(content: bytes | list[Any], spec: TaskSpec, admit: Callable[[int, int], None]) -> np.ndarray:
    if content == b"":
        raise unusable("bad_image", f"the file is empty: {ACCEPTED}")
    try:
        if isinstance(content, list):
            return prepare(Image.fromarray(read_array(content, spec)), spec)
        return read_image(content, spec, formats=FORMATS, animated=False, admit=admit)
    except TooManyPixels as error:
        raise too_large(str(error)) from None
    except ImageError as error:
        raise unusable("bad_image", str(error)) from None
