"""Digits that people labelled after the fact: a folder or prefix with one sub-folder a class."""

from typing import NamedTuple

import numpy as np
from upath import UPath

from mnist_pipeline.ml.data import no_images
from mnist_pipeline.ml.folders import visible_files
from mnist_pipeline.ml.images import ImageError, is_image, read_image
from mnist_pipeline.ml.records import LabelledImages
from mnist_pipeline.ml.settings import CLASSES

LABELS = {str(label): label for label in range(CLASSES)}


class LabelledDigits(NamedTuple):
    """What a drop folder holds."""

    digits: LabelledImages
    skipped: dict[str, str]
    """Relative name of each file that was left out, and why."""


def read_labelled(root: UPath) -> LabelledDigits:
    """Read `<root>/<0-9>/<image>`. A file that is unreadable or elsewhere is skipped and named, not fatal."""
    images, labels, skipped = [], [], {}
    for name in visible_files(root):
        folder, _, rest = name.partition("/")
        if folder not in LABELS or "/" in rest or not rest:
            skipped[name] = "not in a folder named 0 to 9"
        elif not is_image(name):
            skipped[name] = "not an image file"
        else:
            try:
                images.append(read_image((root / name).read_bytes()))
                labels.append(LABELS[folder])
            except (ImageError, OSError) as error:
                skipped[name] = str(error)
    digits = LabelledImages(np.stack(images), np.array(labels, np.uint8)) if images else no_images()
    return LabelledDigits(digits, skipped)
