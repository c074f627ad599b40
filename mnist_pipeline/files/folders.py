"""The one walker of folders and prefixes: which files count, and whether one changed.

It imports little, since the code server looks again and again.
"""

import hashlib
from pathlib import Path
from typing import Any

from upath import UPath

CHUNK_BYTES = 1 << 20


def visible_files(root: UPath) -> dict[str, dict[str, Any]]:
    """Return the name of each file relative to `root`, in order, with the file system's details about it.

    An absent folder equals an empty one. Files and folders with a leading dot (being written) are left out.
    """
    prefix = root.path.rstrip("/") + "/"
    found = {path.removeprefix(prefix): details for path, details in root.fs.find(root.path, detail=True).items()}
    return {name: found[name] for name in sorted(found) if not any(part.startswith(".") for part in name.split("/"))}


def fingerprint(root: UPath) -> str:
    """SHA-256 (hex) of names, sizes and times of change: without reading, whether the digest may be another one."""
    sha = hashlib.sha256()
    for name, details in visible_files(root).items():
        changed = details.get("ETag") or details.get("mtime")
        sha.update(f"{name}\0{details['size']}\0{changed}\0".encode())
    return sha.hexdigest()


def digest(root: UPath) -> str:
    """SHA-256 (hex) of the names and contents of all files; in a bucket, of their names and ETags."""
    sha = hashlib.sha256()
    for name, details in visible_files(root).items():
        sha.update(f"{name}\0{details.get('ETag') or _content(root / name)}\0".encode())
    return sha.hexdigest()


def _content(path: UPath) -> str:
    sha = hashlib.sha256()
    try:
        update(sha, path)
    except PermissionError:  # those who read the file name it
        return "unreadable"
    return sha.hexdigest()


def update(sha: "hashlib._Hash", path: Path | UPath) -> None:
    """Take a file's content into a digest, in constant memory. Raises OSError."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha.update(chunk)
