"""Images that people labelled after the fact: a folder or prefix with one sub-folder a class."""

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

    A file that is unreadable or elsewhere is skipped and named, not fatal.
    Which files count, and which links are followed, is told by `files.folders.walk`.
    """
    label_of = spec.known_folders
    found = walk(root, links)
    images, labels, skipped = [], [], dict(found.left_out)
    for name, entry in found.files.items():
        folder, _, rest = name.partition("/")
        if folder not in label_of or "/" in rest or not rest:
            skipped[name] = f"not in a folder of a class (rename it if the class was): {', '.join(spec.class_folders)}"
        elif not is_image(name):
            skipped[name] = "not an image file"
        else:
            try:
                require_size(entry.size)
                images.append(read_image(read_bytes(root / name), spec))
                labels.append(label_of[folder])
            except (ImageError, OSError) as error:
                skipped[name] = str(error)
    together = LabelledImages(np.stack(images), np.array(labels, np.uint8)) if images else no_images(spec)
    return LabelledFolder(together, skipped)
