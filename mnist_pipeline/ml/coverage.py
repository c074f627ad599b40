"""The answers that a model gives by itself: how many at which error, and the confidence that a wanted error asks for.

Where the least sure answers go to people, those that are left are right more often; the curve of the error among them
against their share is that of selective classification (El-Yaniv and Wiener 2010; Geifman and El-Yaniv 2017, Selective
Classification for Deep Neural Networks).
"""

import math

import numpy as np

from mnist_pipeline.ml.data import evenly
from mnist_pipeline.ml.manifest import ModelManifest
from mnist_pipeline.ml.records import CoverageCurve
from mnist_pipeline.ml.settings import ReviewSettings

POINTS = 200
"""The most points of a curve: it is kept with the model."""

THRESHOLD_OF_BEFORE = 0.8
"""The threshold for models that were saved without a curve."""


def coverage_curve(confidences: np.ndarray, correct: np.ndarray) -> CoverageCurve:
    """Return how many answers are at least so sure, and how many of them are wrong, for confidences and bool (N,)."""
    order = np.argsort(-confidences, kind="stable")
    sure, wrong = confidences[order], np.cumsum(~correct[order])
    # Answers that are equally sure are given together: a point is the last of them.
    last = np.append(np.flatnonzero(np.diff(sure)), len(sure) - 1)
    chosen = last[evenly(len(last), POINTS)]
    return CoverageCurve(
        confidences=sure[chosen].tolist(),
        answered=(chosen + 1).tolist(),
        mistakes=wrong[chosen].tolist(),
        images=len(sure),
    )


def threshold_for(curve: CoverageCurve, target_error: float) -> float:
    """Return the least confidence from which on at most `target_error` (0..1) of the answers are wrong.

    It is 0 where all of them may be given, and above 1 where not even the surest may.
    """
    kept = np.flatnonzero(np.array(curve.mistakes) <= target_error * np.array(curve.answered))
    if not len(kept):
        return math.nextafter(1.0, 2.0)  # single precision calls many an answer sure
    return 0.0 if curve.answered[kept[-1]] == curve.images else curve.confidences[kept[-1]]


def answered_at(curve: CoverageCurve, threshold: float) -> tuple[float, float]:
    """Return the share of images of at least this confidence, and the share of wrong answers among them, both 0..1.

    It is as exact as the points of the curve are near; the error among no answers is 0.
    """
    sure = np.flatnonzero(np.array(curve.confidences) >= threshold)
    if not len(sure):
        return 0.0, 0.0
    answered = curve.answered[sure[-1]]
    return answered / curve.images, curve.mistakes[sure[-1]] / answered


def review_threshold(manifest: ModelManifest, settings: ReviewSettings) -> float:
    """Return the confidence below which an answer of a version needs review."""
    if settings.confidence_threshold is not None:
        return settings.confidence_threshold
    curve = manifest.training.coverage
    return threshold_for(curve, settings.target_error) if curve else THRESHOLD_OF_BEFORE
