"""Stored versions scored again, on the images that there are now and on those of earlier test sets."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from mnist_pipeline.files.errors import DataError
from mnist_pipeline.ml.errors import ModelError
from mnist_pipeline.ml.records import UNKNOWN, Splits
from mnist_pipeline.ml.suite import HELD_OUT, ImageSet, suite
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.datasets import load_images
from mnist_pipeline.stores.errors import CorruptModel, UnknownModel
from mnist_pipeline.stores.scores import predicted_labels
from mnist_pipeline.task.spec import TaskSpec

CORRUPTED = "corrupted by "
"""The beginning of the names of slices of corrupted images (`ml.suite`)."""

CURRENT = "test images"
"""The name of the set that evaluation and gate look at now."""


class Column(NamedTuple):
    """Images that every version is asked about."""

    name: str
    images: int


class Backtest(NamedTuple):
    """The accuracy of versions on sets of images."""

    versions: list[str]
    """The newest at first."""
    columns: list[Column]
    """The current test images, each corruption, the held-out labels, and each earlier test set."""
    accuracies: np.ndarray
    """float64 (versions, columns), 0..1, of the images of classes that a version knows; NaN where it knows none."""
    left_out: dict[str, str]
    """Why versions or earlier test sets could not be asked, by their names."""


def backtest(store: ModelStore, splits: Splits, test_digest: str, chosen: Iterable[str], earlier: int) -> Backtest:
    """Score versions on the suite of `splits`, and on at most so many earlier test sets, the newest ones.

    `test_digest` is the content digest of the test images. Every version is asked about a set once, and what it said is
    kept beside it; so the first time costs, and later ones hardly anything.
    """
    names, left_out = list(chosen), dict[str, str]()
    asked = suite(splits, test_digest)
    groups = {CURRENT: np.arange(asked.test_images)}
    groups |= {name: positions for name, positions in asked.slices if name.startswith(CORRUPTED) or name == HELD_OUT}
    others = _earlier_sets(store, names, splits.spec, test_digest, earlier, left_out)
    columns = [Column(name, len(positions)) for name, positions in groups.items()]
    columns += [Column(name, len(images.labels)) for name, images in others.items()]
    rows = []
    for name in names:
        try:
            _, answers = predicted_labels(store, name, (*asked.sets, *others.values()), splits.spec)
        except (UnknownModel, CorruptModel, ModelError, DataError) as error:
            left_out[name] = str(error)
            continue
        current, rest = np.concatenate(answers[: len(asked.sets)]), answers[len(asked.sets) :]
        scores = [_accuracy(current[positions], asked.labels[positions]) for positions in groups.values()]
        scores += [_accuracy(found, images.labels) for found, images in zip(rest, others.values(), strict=True)]
        rows.append((name, scores))
    accuracies = np.array([scores for _, scores in rows]).reshape(len(rows), len(columns))
    return Backtest([name for name, _ in rows], columns, accuracies, left_out)


def table_rows(found: Backtest) -> list[dict[str, Any]]:
    """Return a row a version, a column a set; None where a version knows none of its classes."""
    return [
        {"version": name}
        | {
            column.name: None if np.isnan(value) else float(value)
            for column, value in zip(found.columns, scores, strict=True)
        }
        for name, scores in zip(found.versions, found.accuracies, strict=True)
    ]


def _earlier_sets(
    store: ModelStore, names: list[str], spec: TaskSpec, current: str, most: int, left_out: dict[str, str]
) -> dict[str, ImageSet]:
    """The test sets that these versions were tested on and that are others than now, by the time of the newest one."""
    found: dict[str, ImageSet] = {}
    seen = {current}
    for name in names:
        try:
            manifest = store.manifest(name)
            record = manifest.training.splits.get("test")
            if record is None or record.digest is None or record.digest in seen or len(found) == most:
                continue
            seen.add(record.digest)
            if manifest.task.class_names != spec.class_names:
                left_out[f"test images of {name}"] = "they are labelled by other classes than there are now"
                continue
            images, labels = load_images(store, record.digest)
        except (UnknownModel, CorruptModel) as error:
            left_out[f"test images of {name}"] = str(error)
            continue
        title = f"earlier test images {record.digest[:8]}"
        found[title] = ImageSet(record.digest, labels, lambda images=images: iter([images]))  # type: ignore[misc]
    return found


def _accuracy(answers: np.ndarray, labels: np.ndarray) -> float:
    known = answers != UNKNOWN
    return float((answers[known] == labels[known]).mean()) if known.any() else float("nan")
