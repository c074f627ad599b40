"""Scores of a model on a split, and its worst mistakes."""

from typing import NamedTuple

import numpy as np

from mnist_pipeline.ml.coverage import coverage_curve
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.ml.records import ClassMetrics, CoverageCurve, SplitEvaluation
from mnist_pipeline.ml.settings import EvaluationSettings
from mnist_pipeline.task.dataset import LabelledImages


class Mistake(NamedTuple):
    """An image that the model labels wrongly, and how sure it is of that."""

    position: int
    label: int
    predicted: int
    confidence: float


class SplitScores(NamedTuple):
    """The results of a model on a split."""

    evaluation: SplitEvaluation
    mistakes: list[Mistake]
    """The surest come first."""
    curve: CoverageCurve
    reliability: list[tuple[float, float, int]]
    """Mean confidence, accuracy and number of the images in each bin of confidence that has any."""


def evaluate(predictor: Predictor, split: LabelledImages, settings: EvaluationSettings) -> SplitScores:
    """Score what would be served on `split`, with at most `settings.worst_mistakes` mistakes.

    Raises ModelError if an output is not finite.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support  # a second or more

    probabilities = predictor.predict(split.images)
    confidences, predicted = probabilities.max(1), probabilities.argmax(1)
    correct = predicted == split.labels
    classes = range(predictor.spec.classes)
    scores = precision_recall_fscore_support(split.labels, predicted, labels=list(classes), zero_division=0.0)
    wrong = np.flatnonzero(~correct)
    worst = wrong[np.argsort(-confidences[wrong], kind="stable")][: settings.worst_mistakes]
    evaluation = SplitEvaluation(
        images=len(correct),
        accuracy=float(correct.mean()),
        loss=cross_entropy(probabilities, split.labels),
        expected_calibration_error=expected_calibration_error(confidences, correct, settings.calibration_bins),
        confusion_matrix=confusion_matrix(split.labels, predicted, labels=list(classes)).tolist(),
        per_class=[
            ClassMetrics(label=label, precision=p, recall=r, f1=f1, support=support)
            for label, p, r, f1, support in zip(classes, *scores, strict=True)
        ],
    )
    mistakes = [Mistake(int(i), int(split.labels[i]), int(predicted[i]), float(confidences[i])) for i in worst]
    bin_of = _bins(confidences, settings.calibration_bins)
    reliability = [
        (float(confidences[inside].mean()), float(correct[inside].mean()), int(inside.sum()))
        for inside in (bin_of == number for number in np.unique(bin_of))
    ]
    return SplitScores(evaluation, mistakes, coverage_curve(confidences, correct), reliability)


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy in nats of probabilities (N, classes) and labels (N,)."""
    given = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(given, np.finfo(probabilities.dtype).tiny)).mean())


def expected_calibration_error(confidences: np.ndarray, correct: np.ndarray, bins: int) -> float:
    """Return the mean gap (0..1) of confidence and accuracy over equally wide bins of confidence, weighted by size.

    Equation 3 of Guo et al. 2017, On Calibration of Modern Neural Networks.
    """
    bin_of = _bins(confidences, bins)
    gap = np.bincount(bin_of, weights=confidences, minlength=bins) - np.bincount(
        bin_of, weights=correct, minlength=bins
    )
    return float(np.abs(gap).sum() / len(confidences))


def _bins(confidences: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin of each confidence, integers (N,) from 0."""
    return np.minimum((confidences * bins).astype(int), bins - 1)
