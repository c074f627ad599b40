"""How many answers are given by themselves, at which error."""

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import binomtest

from mnist_pipeline.ml.coverage import (
    POINTS,
    THRESHOLD_OF_BEFORE,
    answered_at,
    coverage_curve,
    review_threshold,
    threshold_for,
)
from mnist_pipeline.ml.data import split
from mnist_pipeline.ml.export import export
from mnist_pipeline.ml.manifest import ModelManifest, TrainingRecord
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.ml.settings import RealTimePredictionSettings, ReviewSettings, SplitSettings, TrainingSettings
from mnist_pipeline.ml.training import train
from mnist_pipeline.task.dataset import no_images
from mnist_pipeline_tests.conftest import metadata
from mnist_pipeline_tests.task.examples import GOOD, SPEC, TINY, embedded_images

CONFIDENCES = np.array([0.9, 0.5, 0.7, 0.7, 0.99, 0.6])
CORRECT = np.array([True, False, True, False, True, True])
CURVE = coverage_curve(CONFIDENCES, CORRECT)


def test_the_curve_counts_the_surest_first_and_equals_together():
    assert CURVE.confidences == [0.99, 0.9, 0.7, 0.6, 0.5]
    assert CURVE.answered == [1, 2, 4, 5, 6]
    assert CURVE.mistakes == [0, 0, 1, 1, 2]
    assert CURVE.images == 6


@pytest.mark.parametrize(
    ("target", "threshold", "share", "error"),
    [(0.01, 0.9, 2 / 6, 0.0), (0.2, 0.6, 5 / 6, 0.2), (0.25, 0.6, 5 / 6, 0.2), (0.34, 0.0, 1.0, 2 / 6)],
)
def test_the_threshold_is_the_least_that_keeps_to_the_target(target, threshold, share, error):
    assert threshold_for(CURVE, target) == threshold
    assert answered_at(CURVE, threshold) == (share, pytest.approx(error))


def test_where_not_even_the_surest_are_right_all_need_review():
    hopeless = coverage_curve(CONFIDENCES, np.zeros(6, bool))
    assert threshold_for(hopeless, 0.5) > 1
    assert answered_at(hopeless, threshold_for(hopeless, 0.5)) == (0.0, 0.0)
    saturated = coverage_curve(np.array([1, 1, 1, 0.9], np.float32), np.array([True, False, True, True]))
    assert answered_at(saturated, threshold_for(saturated, 0.005)) == (0.0, 0.0)


def test_a_long_curve_has_few_points_and_the_same_ends():
    chance = np.random.default_rng(0)
    confidences = chance.random(20_000)
    curve = coverage_curve(confidences, chance.random(20_000) < confidences)
    assert len(curve.confidences) == POINTS
    assert (curve.confidences[0], curve.answered[-1]) == (confidences.max(), 20_000)


def test_the_error_of_others_is_the_target_within_its_interval():
    """Chosen on one half of images that are right as often as the confidence says, looked at on the other half."""
    chance = np.random.default_rng(0)
    confidences = chance.beta(8, 1, (2, 10_000))
    correct = chance.random(confidences.shape) < confidences
    for target in (0.01, 0.03, 0.06):
        threshold = threshold_for(coverage_curve(confidences[0], correct[0]), target)
        given = confidences[1] >= threshold
        wrong = int((~correct[1][given]).sum())
        assert 0.02 < given.mean() < 1
        assert binomtest(wrong, int(given.sum()), target).pvalue > 0.01


def test_what_needs_review_follows_from_the_model_unless_a_threshold_is_set():
    version = {"name": "a version", "weights_sha256": "", "task": SPEC, "network": {}}
    model = ModelManifest(**version, training=TrainingRecord(coverage=CURVE))
    assert review_threshold(model, ReviewSettings(target_error=0.2)) == 0.6
    assert review_threshold(model, ReviewSettings(target_error=0.01)) == 0.9
    assert review_threshold(model, ReviewSettings(confidence_threshold=0.3)) == 0.3
    assert review_threshold(ModelManifest(**version), ReviewSettings()) == THRESHOLD_OF_BEFORE
    with pytest.raises(ValidationError, match="target_error has no effect beside confidence_threshold"):
        RealTimePredictionSettings(confidence_threshold=0.5, target_error=0.1)


def test_the_threshold_of_the_graph_is_that_of_the_page(pipeline):
    result = pipeline.run(
        digit_classifier=TINY,
        digit_predictions={"target_error": 0.2},
        model_evaluation={"target_error": 0.2},
    )
    manifest = pipeline.store.manifest(pipeline.store.production().version)
    threshold = threshold_for(manifest.training.coverage, 0.2)
    assert 0 <= threshold < 1
    shown, page = metadata(result, "model_evaluation"), metadata(result, "digit_predictions")
    assert shown["confidence_threshold"] == page["confidence_threshold"] == threshold
    assert 0 < shown["test_answered_without_review"] <= 1
    record = result.output_for_node("digit_predictions")
    assert [p.needs_review for p in record.predictions] == [p.confidence < threshold for p in record.predictions]
    strict = pipeline.run("digit_predictions", digit_predictions={"target_error": 0.001})
    assert metadata(strict, "digit_predictions")["confidence_threshold"] > threshold


def test_the_error_among_answered_test_images_is_the_target_within_its_interval():
    """On real images, of a network that errs often enough for it to be seen."""
    splits, settings = split(embedded_images(), no_images(SPEC), SplitSettings()), TrainingSettings(**GOOD)
    exported = export(train(settings, splits).weights, settings, splits)
    sure = exported.answers.probabilities
    curve = coverage_curve(sure.max(1), sure.argmax(1) == splits.validation.labels)
    manifest = ModelManifest(name="a version", weights_sha256="", task=SPEC, network={})
    asked = Predictor(manifest, exported.onnx).predict(splits.test.images)
    wrong = asked.argmax(1) != splits.test.labels
    shares = []
    for target in (0.005, 0.01, 0.02):
        answered = asked.max(1) >= threshold_for(curve, target)
        shares.append(answered.mean())
        mistakes, count = int(wrong[answered].sum()), int(answered.sum())
        print(f"target {target}: {mistakes} of {count} answered are wrong")
        assert binomtest(mistakes, count, target, alternative="greater").pvalue > 0.01
    assert 0.3 < shares[0] < shares[-1] < 1
    assert wrong.mean() > 0.02  # without a threshold none of the targets is kept
