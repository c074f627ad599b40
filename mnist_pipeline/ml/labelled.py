"""Digits that people labelled after the fact: a folder or prefix with one sub-folder a class."""

import hashlib
from typing import NamedTuple

import numpy as np
from upath import UPath

from mnist_pipeline.ml.data import no_images
from mnist_pipeline.ml.images import ImageError, is_image, read_image
from mnist_pipeline.ml.records import LabelledImages
from mnist_pipeline.ml.settings import CLASSES

LABELS = {str(label): label for label in range(CLASSES)}


class LabelledDigits(NamedTuple):
    """What a drop folder holds."""

    digits: LabelledImages
    skipped: dict[str, str]
    """Relative name of each file that was left out, and why."""


def fingerprint_labelled(root: UPath) -> str:
    """SHA-256 (hex) of names, sizes and times of change: tells without reading whether the digest may be another."""
    sha = hashlib.sha256()
    for name, path in _files(root).items():
        stat = path.stat()
        sha.update(f"{name}\0{stat.st_size}\0{stat.st_mtime}\0".encode())
    return sha.hexdigest()


def digest_labelled(root: UPath) -> str:
    """SHA-256 (hex) of the names and contents of all files below `root`; an absent folder equals an empty one."""
    sha = hashlib.sha256()
    for name, path in _files(root).items():
        sha.update(f"{name}\0".encode())
        try:
            sha.update(hashlib.sha256(path.read_bytes()).digest())
        except PermissionError:  # skipped and named by read_labelled
            sha.update(b"unreadable")
    return sha.hexdigest()


def read_labelled(root: UPath) -> LabelledDigits:
    """Read `<root>/<0-9>/<image>`. A file that is unreadable or elsewhere is skipped and named, not fatal."""
    images, labels, skipped = [], [], {}
    for name, path in _files(root).items():
        folder, _, rest = name.partition("/")
        if folder not in LABELS or "/" in rest or not rest:
            skipped[name] = "not in a folder named 0 to 9"
        elif not is_image(name):
            skipped[name] = "not an image file"
        else:
            try:
                images.append(read_image(path.read_bytes()))
                labels.append(LABELS[folder])
            except (ImageError, OSError) as error:
                skipped[name] = str(error)
    digits = LabelledImages(np.stack(images), np.array(labels, np.uint8)) if images else no_images()
    return LabelledDigits(digits, skipped)


def _files(root: UPath) -> dict[str, UPath]:
    """Name relative to `root` -> path, sorted; files and folders with a leading dot (being written) left out."""
    if not root.exists():
        return {}
    prefix = root.path.rstrip("/") + "/"
    found = {path.path.removeprefix(prefix): path for path in root.rglob("*") if path.is_file()}
    return {name: found[name] for name in sorted(found) if not any(part.startswith(".") for part in name.split("/"))}
