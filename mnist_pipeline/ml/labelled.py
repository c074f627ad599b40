"""Images that people labelled after the fact: a folder or prefix with one sub-folder a class."""

import hashlib
from datetime import datetime
from typing import NamedTuple

import numpy as np
from upath import UPath

from mnist_pipeline.files.folders import Links, walk
from mnist_pipeline.files.pictures import ImageError, is_image, require_size
from mnist_pipeline.files.storage import read_bytes
from mnist_pipeline.task.dataset import LabelledImages, no_images
from mnist_pipeline.task.preprocessing import read_image
from mnist_pipeline.task.spec import TaskSpec


class LabelledFolder(NamedTuple):
    """The content of a drop folder."""

    images: LabelledImages
    skipped: dict[str, str]
    """Relative name of each file that was left out, and why."""


def read_labelled(root: UPath, spec: TaskSpec, links: Links = "inside") -> LabelledFolder:
    """Read `<root>/<class>/<image>`, where the folder has the name of the class, or that of `spec.class_folders`.

    A file that is unreadable or elsewhere is skipped and named, not fatal. So is one of an image of which there is a
    newer file: the last word about an image counts.
    Which files count, and which links are followed, is told by `files.folders.walk`.
    """
    label_of = spec.known_folders
    found = walk(root, links)
    skipped = dict(found.left_out)
    latest: dict[bytes, tuple[str, datetime]] = {}
    images: dict[str, np.ndarray] = {}
    for name, entry in found.files.items():
        folder, _, rest = name.partition("/")
        if folder not in label_of or "/" in rest or not rest:
            skipped[name] = f"not in a folder of a class (rename it if the class was): {', '.join(spec.class_folders)}"
        elif not is_image(name):
            skipped[name] = "not an image file"
        else:
            try:
                require_size(entry.size)
                images[name] = read_image(read_bytes(root / name), spec)
            except (ImageError, OSError) as error:
                skipped[name] = str(error)
                continue
            digest = hashlib.sha256(images[name].tobytes()).digest()
            other, changed = latest.get(digest, (name, entry.changed))
            newer, older = (name, other) if entry.changed >= changed else (other, name)
            latest[digest] = newer, max(changed, entry.changed)
            if newer != older:
                skipped[older] = f"{newer} is a newer label of the same image"
                del images[older]
    labels = np.array([label_of[name.partition("/")[0]] for name in images], np.uint8)
    together = LabelledImages(np.stack(list(images.values())), labels) if images else no_images(spec)
    return LabelledFolder(together, skipped)
