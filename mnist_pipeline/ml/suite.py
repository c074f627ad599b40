"""The evaluation suite: what a model is asked besides the test images as they are, and the slices that are looked at.

The answers of a model are the labels that it predicts for all images of the suite, set after set: the test images, the
same corrupted in several ways, and the labelled images that never train. A slice names some of them.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy import stats

from mnist_pipeline.ml.data import content_digest, evenly
from mnist_pipeline.ml.records import SliceScore, Splits
from mnist_pipeline.task.corruptions import corrupted, corruptions
from mnist_pipeline.task.dataset import LabelledImages
from mnist_pipeline.task.spec import TaskSpec
from mnist_pipeline.task.statistics import image_statistics

LEAST_IMAGES = 30
"""Fewer images are no slice: one by chance would be a share of them."""

CORRUPTED_IMAGES = 10_000
"""The most test images that are corrupted: of more, so many at equal distances."""

TAIL = 0.1
"""The share of the test images at each end of a statistic that is a slice."""

PROBES = 8
"""Images whose corruptions tell if others would be other images."""

PART = 1024
"""Images whose statistics are computed at a time."""

HELD_OUT = "held-out labels"
"""The name of the slice of labelled images that never train.

Many are there because the incumbent was wrong about them: on those another model is better by that alone.
"""


class ImageSet(NamedTuple):
    """Some images of the suite."""

    digest: str
    """Equal for equal images (hex)."""
    labels: np.ndarray
    """Integers (N,), the true ones."""
    parts: Callable[[], Iterator[np.ndarray]]
    """Gives uint8 images (n, *spec.array_shape), N together, part by part: all at once may not fit into memory."""


class Slice(NamedTuple):
    """Some images of the suite by what they have in common."""

    name: str
    positions: np.ndarray
    """Integers (n,), among all images of the suite."""


class Suite(NamedTuple):
    """The sets of images and the slices."""

    sets: tuple[ImageSet, ...]
    """The test images, followed by the corrupted ones; then, if there are any, the held-out labels."""
    slices: tuple[Slice, ...]
    test_images: int
    """The number of images at the front that are the test images as they are."""

    @property
    def labels(self) -> np.ndarray:
        """The true labels of all images, integers (M,)."""
        return np.concatenate([images.labels for images in self.sets])


def suite(splits: Splits, test_digest: str) -> Suite:
    """Return the suite of a data set, whose test images have this content digest.

    Slices of fewer than LEAST_IMAGES images are left out, but not that of the held-out labels.
    """
    test, held_out, spec = splits.test, splits.held_out, splits.spec
    chosen = evenly(len(test.labels), CORRUPTED_IMAGES)
    tested = _test_set(test, test_digest, chosen, spec)
    starts = range(len(test.labels), len(tested.labels), len(chosen))
    slices = [
        *slices_of_test(test, spec),
        *(
            Slice(f"corrupted by {name}", np.arange(start, start + len(chosen)))
            for name, start in zip(corruptions(spec), starts, strict=True)
        ),
    ]
    slices = [one for one in slices if len(one.positions) >= LEAST_IMAGES]
    if not len(held_out.labels):
        return Suite((tested,), tuple(slices), len(test.labels))
    others = ImageSet(content_digest(held_out), held_out.labels, lambda: iter([held_out.images]))
    slices.append(Slice(HELD_OUT, np.arange(len(tested.labels), len(tested.labels) + len(held_out.labels))))
    return Suite((tested, others), tuple(slices), len(test.labels))


def _test_set(test: LabelledImages, digest: str, chosen: np.ndarray, spec: TaskSpec) -> ImageSet:
    """The test images as they are, and those that are chosen once more for each corruption."""
    names = list(corruptions(spec))

    def parts() -> Iterator[np.ndarray]:
        yield test.images
        for name in names:
            for start in range(0, len(chosen), PART):
                yield corrupted(test.images[chosen[start : start + PART]], name, spec, seed=start)

    # Another version of a library may corrupt otherwise; some images show that.
    some = (corrupted(test.images[chosen[:PROBES]], name, spec).tobytes() for name in names)
    identity = f"{digest} {PART} {len(chosen)} {names} {hashlib.sha256(b''.join(some)).hexdigest()}"
    labels = np.concatenate([test.labels, np.tile(test.labels[chosen], len(names))])
    return ImageSet(hashlib.sha256(identity.encode()).hexdigest(), labels, parts)


def slices_of_test(test: LabelledImages, spec: TaskSpec) -> Iterator[Slice]:
    """Yield the slices of the test images: by class, and the ends of each statistic of `task.statistics`."""
    for label, name in enumerate(spec.class_names):
        yield Slice(f"class {name}", np.flatnonzero(test.labels == label))
    parts = [image_statistics(test.images[start : start + PART], spec) for start in range(0, len(test.labels), PART)]
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        low, high = np.quantile(values, (TAIL, 1 - TAIL))
        for said, tail in (("lowest", values <= low), ("highest", values >= high)):
            if tail.mean() <= 2 * TAIL:  # else most images have one and the same value
                yield Slice(f"{name}, {said} tenth", np.flatnonzero(tail))


def slice_scores(suite: Suite, correct: np.ndarray) -> list[SliceScore]:
    """Return the accuracy of each slice, with its 95% interval, from bool (M,): which answers are right."""
    scores = []
    for name, positions in suite.slices:
        hits = int(correct[positions].sum())
        interval = stats.binomtest(hits, len(positions)).proportion_ci(method="wilson")
        scores.append(
            SliceScore(
                name=name,
                images=len(positions),
                accuracy=hits / len(positions),
                low=float(interval.low),
                high=float(interval.high),
            )
        )
    return scores
