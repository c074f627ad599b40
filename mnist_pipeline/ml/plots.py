"""Plots for people: each function returns a PNG, small enough to be kept as metadata."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from mnist_pipeline.ml.data import class_counts
from mnist_pipeline.ml.records import (
    NO_LABEL,
    DriftReference,
    DriftReport,
    EpochMetrics,
    Evaluation,
    Prediction,
    SplitEvaluation,
)
from mnist_pipeline.task.dataset import LabelledImages
from mnist_pipeline.task.spec import TaskSpec

if TYPE_CHECKING:  # pictures of data need no scikit-learn
    from mnist_pipeline.ml.evaluation import Mistake, SplitScores
    from mnist_pipeline.ml.improbable import Improbable

DPI = 80
GRID_COLUMNS = 10
READABLE_CLASSES = 30


def class_distribution(splits: dict[str, np.ndarray], spec: TaskSpec) -> bytes:
    """Draw bars of the share of each label, side by side for each named array of labels."""
    figure = Figure(figsize=(7, 3), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(splits)
    for position, (name, labels) in enumerate(splits.items()):
        shares = np.array(class_counts(labels, spec)) / max(len(labels), 1)
        axes.bar(np.arange(spec.classes) + (position - (len(splits) - 1) / 2) * width, shares, width, label=name)
    axes.set(xlabel="label", ylabel="share of the images")
    _name_ticks(axes.set_xticks, spec)
    axes.legend(ncols=len(splits), loc="lower center")
    return png(figure)


def class_grid(split: LabelledImages, spec: TaskSpec, rows: int = 4) -> bytes:
    """Draw the first images of each class, one column a class; of many classes, of some at equal distances."""
    labels = _readable(spec)
    figure = Figure(figsize=(len(labels) * 0.7, rows * 0.75), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, len(labels), squeeze=False)
    for column, label in enumerate(labels):
        of_label = np.flatnonzero(split.labels == label)[:rows]
        for row, axis in enumerate(axes[:, column]):
            axis.axis("off")
            if row < len(of_label):
                axis.imshow(split.images[of_label[row]], **_colours(spec))
        axes[0, column].set_title(_names(spec)[label], **_slanted(spec))
    return png(figure)


def learning_curves(history: Sequence[EpochMetrics], best_epoch: int) -> bytes:
    """Draw loss, accuracy and learning rate over the epochs, the chosen epoch marked."""
    figure = Figure(figsize=(11, 3), dpi=DPI, layout="constrained")
    epochs = [metrics.epoch for metrics in history]
    curves: dict[str, dict[str, list[float]]] = {
        "cross-entropy (nats)": {
            "training": [m.train_loss for m in history],
            "validation": [m.validation_loss for m in history],
        },
        "accuracy": {
            "training": [m.train_accuracy for m in history],
            "validation": [m.validation_accuracy for m in history],
        },
        "learning rate": {"at the epoch's end": [m.learning_rate for m in history]},
    }
    for axes, (title, lines) in zip(figure.subplots(1, 3), curves.items(), strict=True):
        for name, values in lines.items():
            axes.plot(epochs, values, marker=".", label=name)
        axes.axvline(best_epoch, color="gray", linestyle=":", label="chosen epoch")
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    figure.axes[0].set_yscale("log")
    return png(figure)


def confusion(evaluation: SplitEvaluation, spec: TaskSpec) -> bytes:
    """Draw the confusion matrix as counts, coloured by the share of the true label."""
    matrix = np.array(evaluation.confusion_matrix)
    figure = Figure(figsize=(5.5, 5), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        if count and spec.classes <= READABLE_CLASSES:
            axes.text(
                column, row, count, ha="center", va="center", color="white" if shares[row, column] > 0.5 else "black"
            )
    axes.set(xlabel="predicted label", ylabel="true label")
    _name_ticks(axes.set_xticks, spec)
    _name_ticks(axes.set_yticks, spec, slanted=False)
    axes.set_title(f"accuracy {evaluation.accuracy:.4f} on {evaluation.images:,} images")
    return png(figure)


def slice_accuracies(evaluation: Evaluation) -> bytes:
    """Draw the accuracy on each slice with its interval, beside that on the whole test split."""
    scores = evaluation.slices[::-1]  # the first one on top
    figure = Figure(figsize=(8, 1.2 + 0.2 * len(scores)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    accuracies = np.array([score.accuracy for score in scores])
    ends = np.array([[score.accuracy - score.low, score.high - score.accuracy] for score in scores]).reshape(-1, 2)
    axes.errorbar(accuracies, range(len(scores)), xerr=ends.clip(0).T, fmt=".", color="tab:blue", ecolor="lightgray")
    axes.axvline(evaluation.test.accuracy, color="gray", linestyle=":")
    names = [score.name.replace("$", r"\$") for score in scores]
    axes.set_yticks(range(len(scores)), [f"{name} ({s.images:,})" for name, s in zip(names, scores, strict=True)])
    axes.tick_params(axis="y", labelsize=8)
    axes.set(xlabel="accuracy, 95% interval", ylim=(-0.7, len(scores) - 0.3))
    axes.set_title(f"dotted: all test images ({evaluation.test.accuracy:.4f})", fontsize=10)
    return png(figure)


def calibration_and_coverage(scores: "Mapping[str, SplitScores]", target_error: float, threshold: float) -> bytes:
    """Draw, of each split, accuracy against confidence, and the error among answers against how many are given."""
    figure = Figure(figsize=(11, 3.6), dpi=DPI, layout="constrained")
    reliability, coverage = figure.subplots(1, 2)
    for name, found in scores.items():
        sure, right, images = (np.array(values) for values in zip(*found.reliability, strict=True))
        error = f"{found.evaluation.expected_calibration_error:.4f}"
        sizes = 4 + 100 * np.sqrt(images / images.sum())  # most bins hold few images, and what they say is chance
        reliability.scatter(sure, right, sizes, label=f"{name} (expected calibration error {error})")
        answered, mistakes = np.array(found.curve.answered), np.array(found.curve.mistakes)
        coverage.plot(answered / found.curve.images, mistakes / answered, marker=".", markersize=3, label=name)
    reliability.plot([0, 1], [0, 1], color="gray", linestyle=":")
    reliability.set(title="calibration", xlabel="mean confidence", ylabel="accuracy")
    coverage.axhline(target_error, color="gray", linestyle=":", label=f"target_error {target_error:g}")
    said = f"below a confidence of {threshold:.3f} an answer needs review"
    coverage.set(title=said, xlabel="share answered without review", ylabel="error among them", ylim=(0, None))
    reliability.legend(fontsize=8, loc="lower right")
    coverage.legend(fontsize=8, loc="upper left")
    return png(figure)


def mistake_grid(split: LabelledImages, mistakes: "Sequence[Mistake]", spec: TaskSpec) -> bytes:
    """Draw the images of `mistakes` with true label, predicted label and confidence."""
    names = _names(spec)
    titles = [f"{names[m.label]} read as {names[m.predicted]}\n{m.confidence:.3f}" for m in mistakes]
    return _titled_grid([split.images[mistake.position] for mistake in mistakes], titles, spec)


def improbable_grid(
    parts: Sequence[LabelledImages], improbable: "Sequence[Improbable]", spec: TaskSpec, most: int = 60
) -> bytes:
    """Draw the images whose labels are improbable, with the label that was given and the one that is likeliest."""
    names, shown = _names(spec), improbable[:most]
    titles = [f"{names[one.given]}, not {names[one.likeliest]}?\n{one.probability_given:.3f}" for one in shown]
    return _titled_grid([parts[one.part].images[one.position] for one in shown], titles, spec)


def disagreement_grid(
    split: LabelledImages, candidate: np.ndarray, incumbent: np.ndarray, spec: TaskSpec, most: int = 30
) -> bytes:
    """Draw the images that the candidate fixes (green) and breaks (red), at most so many of each.

    `candidate` and `incumbent` are the labels (N,) that the two predict. A title has the true label and the wrong one.
    """
    names, images, titles, colours = _names(spec), [], [], []
    for right, wrong, word, colour in (
        (candidate, incumbent, "fixed", "tab:green"),
        (incumbent, candidate, "broken", "tab:red"),
    ):
        comparable = wrong >= NO_LABEL
        for position in np.flatnonzero(comparable & (right == split.labels) & (wrong != split.labels))[:most]:
            images.append(split.images[position])
            said = "another class" if wrong[position] == NO_LABEL else names[wrong[position]]
            titles.append(f"{word}: {names[split.labels[position]]}\nnot {said}")
            colours.append(colour)
    return _titled_grid(images, titles, spec, colours)


def predicted_images(images: np.ndarray, predictions: Sequence[Prediction], spec: TaskSpec) -> bytes:
    """Draw each image as the model sees it, with label and confidence; at most the first 100.

    What is unlike the training images is named so, in red.
    """
    names, shown = _names(spec), predictions[:100]
    titles = [
        f"unlike all\n({names[p.label]} {p.confidence:.2f})"
        if p.unlike_training_data
        else f"{names[p.label]}{'?' if p.needs_review else ''}\n{p.confidence:.3f}"
        for p in shown
    ]
    colours = ["tab:red" if p.unlike_training_data else "black" for p in shown]
    return _titled_grid(images[:100], titles, spec, colours)


def label_counts(counts: Sequence[int], spec: TaskSpec) -> bytes:
    """Draw bars of how often each label was predicted."""
    figure = Figure(figsize=(6, 2.5), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(range(spec.classes), counts)
    if spec.classes <= READABLE_CLASSES:
        axes.bar_label(bars)
    axes.set(xlabel="predicted label", ylabel="images")
    _name_ticks(axes.set_xticks, spec)
    axes.margins(y=0.15)
    return png(figure)


def drift_histograms(reference: DriftReference, report: DriftReport, spec: TaskSpec) -> bytes:
    """Draw the share of each bin, validation split beside batch; the title says where they differ."""
    rows = -(-len(report.findings) // 3)
    figure = Figure(figsize=(11, 2.5 * rows), dpi=DPI, layout="constrained")
    for axes, finding in zip(figure.subplots(rows, 3, squeeze=False).ravel(), report.findings, strict=False):
        expected = np.array(reference.histograms[finding.statistic].counts)
        bins = np.arange(len(expected))
        axes.bar(bins, expected / expected.sum(), width=0.9, color="lightgray", label="validation split")
        axes.step(bins, np.array(finding.counts) / report.images, where="mid", color="tab:blue", label="this batch")
        verdict = "drifted" if finding.drifted else "alike"
        axes.set_title(
            f"{finding.statistic}: {verdict} (PSI {finding.population_stability_index:.2f})",
            color="tab:red" if finding.drifted else "black",
            fontsize=10,
        )
        axes.set(xlabel="bin, low to high", ylabel="share")
        if finding.statistic == "predicted_label":
            axes.set_xlabel("")
            _name_ticks(axes.set_xticks, spec)
    figure.axes[0].legend(fontsize=8)
    return png(figure)


def _colours(spec: TaskSpec) -> dict[str, Any]:
    """Return how an image is shown: handwriting dark on light."""
    return {"cmap": "gray_r" if spec.pictures == "handwriting" else "gray", "vmin": 0, "vmax": 255}


def _names(spec: TaskSpec) -> list[str]:
    """Return the names of the classes so that no dollar sign begins a formula."""
    return [name.replace("$", r"\$") for name in spec.class_names]


def _readable(spec: TaskSpec) -> list[int]:
    """Return the labels whose names have room beside each other: all, or of many classes every so many."""
    return list(range(0, spec.classes, -(-spec.classes // READABLE_CLASSES)))


def _name_ticks(set_ticks: Callable[..., Any], spec: TaskSpec, slanted: bool = True) -> None:
    """Name the classes along an axis."""
    labels = _readable(spec)
    set_ticks(labels, [_names(spec)[label] for label in labels], **(_slanted(spec) if slanted else {"fontsize": 8}))


def _slanted(spec: TaskSpec) -> dict[str, Any]:
    """Return how names of classes stand side by side: words are slanted, so that they do not run into each other."""
    return {"rotation": 30, "ha": "right", "fontsize": 8} if max(map(len, spec.class_names)) > 2 else {}


def _titled_grid(
    images: Sequence[np.ndarray] | np.ndarray, titles: Sequence[str], spec: TaskSpec, colours: Sequence[str] = ()
) -> bytes:
    rows = max(1, -(-len(titles) // GRID_COLUMNS))
    figure = Figure(figsize=(GRID_COLUMNS, rows * 1.3), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, GRID_COLUMNS, squeeze=False).ravel()
    for axis in grid:
        axis.axis("off")
    for number, (axis, image, title) in enumerate(zip(grid, images, titles, strict=False)):
        axis.imshow(image, **_colours(spec))
        axis.set_title(title, fontsize=8, color=colours[number] if colours else "black")
    return png(figure)


def png(figure: Figure) -> bytes:
    """Return a figure as a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
