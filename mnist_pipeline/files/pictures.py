"""Image files from anybody: decoded within bounds, whatever is wrong with them."""

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""Pillow knows many more, some of which start other programs."""

MAX_PIXELS = 50_000_000
"""Larger pictures are refused before they are decoded."""

MAX_FILE_BYTES = 100 << 20
"""Larger files are refused before they are read: a picture of MAX_PIXELS seldom has a quarter of that."""

MAX_SCANS = 100
"""A progressive JPEG goes over the whole picture once a scan, and has about ten; more are refused."""

START_OF_SCAN = b"\xff\xda"
"""The marker before each scan of a JPEG; within a scan the first byte is never followed by the second."""

PREVIEW_SCALES = (1, 0.85, 0.7, 0.6, 0.5, 0.4, 0.33, 0.25)
WEBP_SIDE = 16383
"""The longest side that the format has."""

PREVIEW_QUALITIES = (60, 30, 12)
"""WebP's, 0..100: at the last one, plots can still be read."""

SHRUNK_SIDE = 2048
"""Larger pictures are shrunk first, which saves time and memory: a hundredth of their width is 20 pixels."""

SHRINKABLE_AS = {"1": "L", "P": "RGB", "PA": "RGBA", "I;16": "I", "I;16L": "I", "I;16B": "I", "I;16N": "I"}
"""The mode in which a picture is shrunk, where that is another one than its own."""


class ImageError(ValueError):
    """The picture cannot be read, or shows nothing; the message says why."""


class TooManyPixels(ImageError):
    """The picture is larger than allowed and was not decoded."""


@contextmanager
def open_picture(
    data: bytes,
    *,
    formats: tuple[str, ...] = FORMATS,
    animated: bool = True,
    admit: Callable[[int, int], None] | None = None,
) -> Iterator[Image.Image]:
    """Open an image file of any of the `formats`, turned as its EXIF data says, no side longer than SHRUNK_SIDE.

    Pixels are decoded when they are first looked at, so do that inside the block: whatever Pillow raises there is
    an ImageError. Of an animation the first picture is taken; with `animated` False it is refused. `admit` is told
    width and height before anything is decoded and may raise; by default it refuses more than MAX_PIXELS.
    """
    with _damage_refused(formats):
        picture = Image.open(io.BytesIO(data), formats=formats)
    with picture:
        if picture.format in ("JPEG", "MPO") and data.count(START_OF_SCAN) > MAX_SCANS:
            raise ImageError(f"the JPEG has more than {MAX_SCANS} scans, which would take minutes to decode")
        (admit or _at_most_max_pixels)(*picture.size)
        with _damage_refused(formats):
            # A photo with previews (MPO) has several pictures too, and the first is the photo.
            if not animated and picture.format != "MPO" and getattr(picture, "is_animated", False):
                raise ImageError("the picture is animated: send a single picture")
            yield _upright(picture)


def is_image(path: Path | str) -> bool:
    """Return whether the name has the ending of an image file."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def require_size(size: int) -> None:
    """Raise ImageError for a file of more than MAX_FILE_BYTES."""
    if size > MAX_FILE_BYTES:
        raise ImageError(f"the file has {size:,} bytes, more than {MAX_FILE_BYTES:,}")


@contextmanager
def _damage_refused(formats: tuple[str, ...]) -> Iterator[None]:
    """Turn whatever Pillow raises on damaged files, which is almost anything, into ImageError."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageError(f"not an image in a known format ({', '.join(formats)})") from None
    except Image.DecompressionBombError as error:
        raise TooManyPixels(str(error)) from None
    except Exception as error:
        raise ImageError(f"broken image: {error}") from error


def _at_most_max_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise TooManyPixels(f"{width}x{height} is more than {MAX_PIXELS:,} pixels")


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as its EXIF data says, and averaged over blocks so that no side is longer than SHRUNK_SIDE."""
    picture.draft(None, (SHRUNK_SIDE, SHRUNK_SIDE))  # a JPEG is decoded smaller at once
    picture = ImageOps.exif_transpose(picture)
    factor = math.ceil(max(picture.size) / SHRUNK_SIDE)
    if factor == 1:
        return picture
    mode = "RGBA" if picture.mode == "P" and picture.has_transparency_data else SHRINKABLE_AS.get(picture.mode)
    return (picture.convert(mode) if mode else picture).reduce(factor)


def preview(png: bytes, most_bytes: int) -> bytes:
    """Return a picture of ours as WebP of at most so many bytes: as large as that allows, then as good.

    A picture that is too large even at a quarter of its size comes out larger.
    """
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.thumbnail((WEBP_SIDE, WEBP_SIDE))
    least = len(_webp(picture, PREVIEW_QUALITIES[-1]))
    # Small pictures take more bytes a pixel, never fewer: the larger scales need not be tried.
    scales = [scale for scale in PREVIEW_SCALES if scale**2 * least <= most_bytes]
    for scale in scales or PREVIEW_SCALES[-1:]:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        shrunk = picture if scale == 1 else picture.resize(size, Image.Resampling.LANCZOS)
        for quality in PREVIEW_QUALITIES:
            if len(content := _webp(shrunk, quality)) <= most_bytes:
                return content
    return content


def _webp(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=quality)
    return buffer.getvalue()
