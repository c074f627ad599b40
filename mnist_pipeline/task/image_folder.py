"""A data set of one's own: image files of any size, format and mode, a folder a class."""

import hashlib
import io
import logging
import math
from pathlib import Path
from statistics import median_low
from typing import NamedTuple

import numpy as np
from PIL import Image
from pydantic import ValidationError

from mnist_pipeline.files.errors import DataError
from mnist_pipeline.files.folders import printable, walk
from mnist_pipeline.files.pictures import FORMATS, ImageError, is_image, require_size
from mnist_pipeline.files.tensors import scratch
from mnist_pipeline.task.dataset import Dataset, DatasetSettings, LabelledImages, scale, task_name
from mnist_pipeline.task.preprocessing import read_image
from mnist_pipeline.task.spec import MAX_CLASSES, TaskSpec

log = logging.getLogger(__name__)

TRAIN, TEST = "train", "test"
TEST_SHARE = 0.2
"""The share of the files of each class that are to test with, where the folder does not say which."""

USUAL_SIDES = (28, 32, 48, 64, 96, 128)
"""The sizes of which one is chosen where none is set, so that it seldom changes: what trains without a GPU."""

GREY_MODES = ("1", "L", "LA", "I", "F")
PROGRESS_FILES = 5000
"""So often reading says how far it is."""


class _File(NamedTuple):
    """An image file of a class."""

    name: str
    """The name relative to the folder of the data set."""
    class_name: str
    digest: str
    """SHA-256 (hex) of the content."""
    side: int
    """The shorter side in pixels."""
    grey: bool


def load_folder(settings: DatasetSettings) -> Dataset:
    """Read `<class>/<image>`, or `train/<class>/<image>` and `test/<class>/<image>`, in the folder of the settings.

    Without `test/`, a fifth of each class is to test with: the files whose content has the smallest digests, so that
    few change sides when others are added. A file that is unreadable, at another place, or the same as another one is
    skipped and named. Raises DataError where there are fewer than two classes, a class has no image to train on, or
    one image is in two classes.
    """
    root = Path(settings.directory)
    if not settings.directory or not root.is_dir():
        where = f"{root} is none" if settings.directory else "it is not set"
        raise DataError(f"DATASET=folder needs DATASET_DIR, a folder with a folder of images for each class: {where}")
    found = walk(root, settings.links)
    skipped = dict(found.left_out)
    parts = _by_place(list(found.files), skipped)
    files = {part: _looked_at(root, names, skipped) for part, names in parts.items()}
    _leave_out_duplicates(files, skipped)
    class_names = _class_names(root, files, skipped)
    if not files[TEST]:
        files = _held_out(files[TRAIN])
    spec = _spec(settings, root, class_names, files[TRAIN] + files[TEST])
    seen: dict[bytes, _File] = {}
    test, train = (_decoded(root, files[part], spec, skipped, seen) for part in (TEST, TRAIN))
    counts = np.bincount(train.labels, minlength=spec.classes)
    if lost := [name for name, count in zip(class_names, counts, strict=True) if not count]:
        raise DataError(f"{root}: no image can be read of the classes {', '.join(lost)}; {_first(skipped)}")
    if not len(test.labels):
        raise DataError(f"{root}: there is no image to test with; {_first(skipped)}")
    mean, std = scale(train.images)
    spec = spec.model_copy(update={"mean": mean, "std": std})
    size = "x".join(map(str, spec.image_shape))
    found_by = "" if settings.image_size and settings.image_channels else " (IMAGE_SIZE, IMAGE_CHANNELS: to keep it so)"
    images = len(train.labels) + len(test.labels)
    said = f"{images:,} image files in {root}, as {size}{found_by}; {len(skipped):,} skipped"
    for name, why in list(skipped.items())[:100]:
        log.warning("%s is skipped: %s", printable(name), why)
    return Dataset(train, test, said, is_sample=False, spec=spec, skipped=dict(sorted(skipped.items())))


def _by_place(names: list[str], skipped: dict[str, str]) -> dict[str, dict[str, str]]:
    """The files of each part and their classes. A class may be called `train`: then its images lie right in it."""
    places = {name: name.split("/") for name in names}
    pictures = [place for name, place in places.items() if is_image(name)]
    divided = any(len(place) == 3 and place[0] == TRAIN for place in pictures) and all(len(p) != 2 for p in pictures)
    depth, parts = (3, (TRAIN, TEST)) if divided else (2, (TRAIN,))
    found: dict[str, dict[str, str]] = {TRAIN: {}, TEST: {}}
    for name, place in places.items():
        if len(place) != depth or (divided and place[0] not in parts):
            expected = "train/<class>/<image> or test/<class>/<image>" if divided else "<class>/<image>"
            skipped[name] = f"it is misplaced: not {expected}"
        elif not is_image(name):
            skipped[name] = "it is not an image file"
        else:
            found[place[0] if divided else TRAIN][name] = place[-2]
    return found


def _looked_at(root: Path, classes: dict[str, str], skipped: dict[str, str]) -> list[_File]:
    files = []
    for name, class_name in classes.items():
        try:
            require_size((root / name).stat().st_size)
            data = (root / name).read_bytes()
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                grey = picture.mode.partition(";")[0] in GREY_MODES
                files.append(_File(name, class_name, hashlib.sha256(data).hexdigest(), min(picture.size), grey))
        except (ImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            skipped[name] = f"it cannot be read: {error}"
    return files


def _leave_out_duplicates(files: dict[str, list[_File]], skipped: dict[str, str]) -> None:
    """Keep the first file of each content, one to test with before one to train on."""
    first: dict[str, _File] = {}
    for part in (TEST, TRAIN):
        kept = []
        for file in files[part]:
            other = first.setdefault(file.digest, file)
            if other is file:
                kept.append(file)
            else:
                _require_same_class(other, file)
                skipped[file.name] = f"it is the same as {printable(other.name)}"
        files[part] = kept


def _class_names(root: Path, files: dict[str, list[_File]], skipped: dict[str, str]) -> tuple[str, ...]:
    with_images = {file.class_name for file in files[TRAIN]}
    divided = any(file.name.count("/") == 2 for file in files[TRAIN])
    folders = [root / TRAIN, root / TEST] if divided else [root]
    named = {
        path.name
        for folder in folders
        if folder.is_dir()
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    }
    if not divided and named <= {TRAIN, TEST}:
        raise DataError(f"{root}: there is no train/<class>/<image> that can be read; {_first(skipped)}")
    if empty := sorted(named - with_images):
        raise DataError(
            f"{root}: no image to train on in the classes {', '.join(map(printable, empty))}: add some, or remove the "
            f"folder; {_first(skipped)}"
        )
    if not 2 <= len(with_images) <= MAX_CLASSES:
        raise DataError(
            f"{root} has {len(with_images)} classes with images ({', '.join(sorted(with_images)[:10])}), and 2 to "
            f"{MAX_CLASSES} are needed: one folder of images a class"
        )
    return tuple(sorted(with_images))


def _held_out(files: list[_File]) -> dict[str, list[_File]]:
    parts: dict[str, list[_File]] = {TRAIN: [], TEST: []}
    by_class: dict[str, list[_File]] = {}
    for file in sorted(files, key=lambda file: file.digest):
        by_class.setdefault(file.class_name, []).append(file)
    for of_class in by_class.values():
        count = math.ceil(TEST_SHARE * len(of_class)) if len(of_class) > 1 else 0
        parts[TEST] += of_class[:count]
        parts[TRAIN] += of_class[count:]
    return {part: sorted(chosen) for part, chosen in parts.items()}


def _spec(settings: DatasetSettings, root: Path, class_names: tuple[str, ...], files: list[_File]) -> TaskSpec:
    """The spec of the settings, else of the files; its scale is not known yet."""
    pictures = settings.pictures or "photos"
    grey = pictures != "photos" or 2 * sum(file.grey for file in files) > len(files)
    channels = settings.image_channels or (1 if grey else 3)
    middle = median_low(file.side for file in files)
    side = max((usual for usual in USUAL_SIDES if usual <= middle), default=USUAL_SIDES[0])
    try:
        return TaskSpec(
            name=settings.name or task_name(root),
            pictures=pictures,
            class_names=class_names,
            image_shape=(*(settings.image_size or (side, side)), channels),
            mean=(0,) * channels,
            std=(1,) * channels,
        )
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise DataError(f"{root}: {problem}") from None


def _first(skipped: dict[str, str]) -> str:
    return next((f"{printable(name)} is skipped: {why}" for name, why in skipped.items()), "nothing is skipped")


def _decoded(
    root: Path, files: list[_File], spec: TaskSpec, skipped: dict[str, str], seen: dict[bytes, _File]
) -> LabelledImages:
    """The images of the files. One that is as another one, once prepared, is left out, too; `seen` is kept up."""
    images, labels = scratch((len(files), *spec.array_shape)), np.empty(len(files), np.uint8)  # may exceed memory
    count = 0
    for number, file in enumerate(files, 1):
        try:
            image = read_image(_as_before(root, file), spec)
            other = seen.setdefault(hashlib.sha256(image.tobytes()).digest(), file)
            if other is file:
                images[count], labels[count] = image, spec.class_names.index(file.class_name)
                count += 1
            else:
                _require_same_class(other, file)
                skipped[file.name] = f"it looks the same as {printable(other.name)}"
        except ImageError as error:
            skipped[file.name] = str(error)
        if number % PROGRESS_FILES == 0:
            log.info("%d of %d files read", number, len(files))
    return LabelledImages(images[:count], labels[:count])


def _as_before(root: Path, file: _File) -> bytes:
    """The content of a file, which has been looked at before: classes, sizes and duplicates were told by that."""
    try:
        data = (root / file.name).read_bytes()
    except OSError as error:
        raise DataError(f"{root} changed while it was read: {printable(file.name)} is gone ({error})") from error
    if hashlib.sha256(data).hexdigest() != file.digest:
        raise DataError(f"{root} changed while it was read: {printable(file.name)} is another image now. Run again")
    return data


def _require_same_class(other: _File, file: _File) -> None:
    if other.class_name != file.class_name:
        raise DataError(
            f"{printable(other.name)} and {printable(file.name)} are the same image in two classes: remove one"
        )
