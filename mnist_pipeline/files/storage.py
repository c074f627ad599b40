"""Files in a folder or on `s3://`, written whole or not at all."""

import shutil
from pathlib import Path

from upath import UPath

from mnist_pipeline.files import atomic


def storage_path(url: str, endpoint_url: str | None = None) -> UPath:
    """A folder path or an `s3://bucket/prefix` as a path object; credentials are found by the S3 client itself."""
    if url.startswith("s3://"):
        # A server that lives for weeks must see what others wrote since.
        return UPath(url, endpoint_url=endpoint_url, use_listings_cache=False)
    return UPath(url)


def write_bytes(path: UPath, data: bytes) -> None:
    """Replace an object or a file by `data`, all or nothing."""
    if path.protocol in ("", "file"):
        atomic.write_bytes(Path(path.path), data)
    else:
        path.write_bytes(data)  # S3 shows an object only when it is complete


def upload(file: Path, path: UPath) -> None:
    """Move a finished local file to where it belongs, all or nothing, without holding it in memory."""
    if path.protocol in ("", "file"):
        with atomic.replacing(Path(path.path)) as temporary:
            shutil.copyfile(file, temporary)
    else:
        path.fs.put_file(str(file), path.path)
