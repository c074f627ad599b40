"""Two versions beside each other: settings, curves, the gate's paired test, slices, the images on which they differ."""

from typing import Any, NamedTuple

import numpy as np

from mnist_pipeline.experiments.naming import Found, find_version
from mnist_pipeline.experiments.pages import inline, render
from mnist_pipeline.experiments.plots import compared_curves
from mnist_pipeline.ml import plots
from mnist_pipeline.ml.comparison import Contender, compare, compare_slices
from mnist_pipeline.ml.manifest import Comparison, Provenance
from mnist_pipeline.ml.records import UNKNOWN, Splits
from mnist_pipeline.ml.suite import suite
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.datasets import load_images
from mnist_pipeline.stores.errors import ModelStoreError
from mnist_pipeline.stores.evaluations import kept_evaluation
from mnist_pipeline.stores.exports import ONNX
from mnist_pipeline.stores.scores import predicted_labels
from mnist_pipeline.stores.versions import WEIGHTS
from mnist_pipeline.task.dataset import LabelledImages, no_images
from mnist_pipeline.task.spec import TaskSpec

MIB = 2**20


class Compared(NamedTuple):
    """The answers of two versions about the same images. `first` fixes and breaks images of `second`."""

    first: Found
    second: Found
    on: str
    """test or validation: the images that both are asked about."""
    images: LabelledImages
    spec: TaskSpec
    """The classes that the labels stand for."""
    labels: tuple[np.ndarray, np.ndarray]
    """int64 (N,) each: the labels that they predict."""
    overall: Comparison
    slices: list[Comparison]
    remark: str | None
    """The reason why the comparison may not be fair; None: there is none."""


def compare_versions(store: ModelStore, first: str, second: str) -> Compared:
    """Compare two versions by their names on the test images of the newer one.

    Where one of them was never evaluated on test images, as trials are not, on validation images: the test images are
    looked at when a version is evaluated, and not to choose among trials. Raises ModelStoreError, ModelError.
    """
    found = find_version(store, first), find_version(store, second)
    both = [one.manifest for one in found]
    if both[0].name == both[1].name:
        raise ModelStoreError(f"{both[0].name} is compared with itself: name two versions")
    on = "test" if all(kept_evaluation(one.store, one.manifest.name) for one in found) else "validation"
    newer = max(
        both, key=lambda manifest: manifest.training.created_at.timestamp() if manifest.training.created_at else 0
    )
    digests = [manifest.training.splits[on].digest if on in manifest.training.splits else None for manifest in both]
    chosen = digests[both.index(newer)] or next(filter(None, digests), None)
    if chosen is None:
        raise ModelStoreError(f"neither of both has kept its {on} images: they were saved before splits were kept")
    images, spec = load_images(store, chosen), newer.task
    splits = Splits(no_images(spec), no_images(spec), images, spec, no_images(spec))
    asked = suite(splits, chosen)
    contenders, labels = [], []
    for one in found:
        known, [answers] = predicted_labels(one.store, one.manifest.name, asked.sets, spec)
        everything = Contender(one.manifest.name, known, answers == asked.labels, answers == UNKNOWN)
        tested = slice(asked.test_images)
        assert everything.unknown is not None
        own = Contender(one.manifest.name, known, everything.correct[tested], everything.unknown[tested], everything)
        contenders.append(own)
        labels.append(answers[tested])
    if not contenders[0].shares_classes(contenders[1]):
        raise ModelStoreError(f"{both[0].name} and {both[1].name} have no class in common")
    remark = None
    if digests[0] != digests[1]:
        remark = f"their {on} images are not the same: one may have been trained on some of those of the other"
    return Compared(
        *found,
        on,
        images,
        spec,
        (labels[0], labels[1]),
        compare(contenders[0], contenders[1], "incumbent"),
        compare_slices(contenders[0], contenders[1], "incumbent", asked.slices),
        remark,
    )


def settings_rows(compared: Compared) -> list[dict[str, Any]]:
    """Return a row for each setting in which they differ."""
    ours, theirs = (one.manifest.training.settings for one in (compared.first, compared.second))
    return [
        {"setting": name, "first": str(ours.get(name, "not there")), "second": str(theirs.get(name, "not there"))}
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name)
    ]


def score_rows(compared: Compared) -> list[dict[str, Any]]:
    """Return a row for each score and each cost: what it is of both, and the difference."""
    rows = []
    (ours, theirs), overall = (_measures(one) for one in (compared.first, compared.second)), compared.overall
    on = f"accuracy on the {compared.on} images"
    ours[on], theirs[on] = overall.test_accuracy - overall.regression, overall.test_accuracy
    for name, value in ours.items():
        other = theirs[name]
        difference = value - other if value is not None and other is not None else None
        rows.append({"measure": name, "first": value, "second": other, "difference": difference})
    return rows


def paired_rows(compared: Compared) -> list[dict[str, Any]]:
    """Return a row for the paired test on all images, and one for each slice."""
    return [
        {
            "on": one.slice or f"all {compared.on} images",
            "images": one.images,
            "first": one.test_accuracy - one.regression,
            "second": one.test_accuracy,
            "fixed": one.fixed,
            "broken": one.broken,
            "gain": 0.0 - one.regression,
            "gain from": 0.0 - one.regression_high,
            "gain to": 0.0 - one.regression_low,
            "p: worse by chance": one.p_worse,
            "p: better by chance": one.p_better,
        }
        for one in (compared.overall, *compared.slices)
    ]


def comparison_page(compared: Compared) -> bytes:
    """Return the page of a comparison, HTML with no other resources."""
    ours, theirs = compared.labels
    differ = bool((ours != theirs).any())
    histories = {"first": compared.first.manifest.training.epochs, "second": compared.second.manifest.training.epochs}
    return render(
        "compare.html",
        compared=compared,
        # A card is beside that of the other one only where both are versions of one store.
        up="../../" if compared.first.store.address == compared.second.store.address else "",
        first=compared.first.manifest.name,
        second=compared.second.manifest.name,
        settings=settings_rows(compared),
        scores=score_rows(compared),
        paired=paired_rows(compared),
        curves=inline(compared_curves(histories)),
        images=inline(plots.disagreement_grid(compared.images, ours, theirs, compared.spec)) if differ else None,
    )


def _measures(found: Found) -> dict[str, float | int | None]:
    training = found.manifest.training
    origin = training.provenance or Provenance()
    return {
        "validation accuracy": training.best("validation_accuracy"),
        "validation loss": training.best("validation_loss"),
        "epochs": len(training.history),
        "seconds of training": origin.seconds,
        "peak memory (MiB)": origin.peak_memory_mib,
        "weights (MiB)": len(found.store.read_object(f"{found.manifest.name}/{WEIGHTS}")[0]) / MIB,
        "model.onnx (MiB)": len(found.store.read_object(f"{found.manifest.name}/{ONNX}")[0]) / MIB,
    }
