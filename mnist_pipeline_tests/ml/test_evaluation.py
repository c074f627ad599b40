"""Scores against hand-made cases and scikit-learn's own."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss
from torch import nn

from mnist_pipeline.ml.errors import ModelError
from mnist_pipeline.ml.evaluation import evaluate, expected_calibration_error
from mnist_pipeline.ml.export import to_onnx
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.ml.settings import EvaluationSettings, TrainingSettings
from mnist_pipeline.stores import LocalModelStore
from mnist_pipeline_tests.task.examples import SPEC, TINY
from mnist_pipeline_tests.versions import save


@pytest.fixture
def predictor(trained, tmp_path) -> Predictor:
    store = LocalModelStore(base_path=str(tmp_path))
    return Predictor(*store.load_onnx(save(store, trained, TrainingSettings(**TINY)).name))


def test_scores_agree_with_scikit_learn(predictor, splits):
    scores, mistakes, curve, reliability = evaluate(predictor, splits.test, EvaluationSettings(worst_mistakes=5))
    probabilities = predictor.predict(splits.test.images)
    predicted = probabilities.argmax(1)
    assert scores.loss == pytest.approx(log_loss(splits.test.labels, probabilities.astype(np.float64)), rel=1e-5)
    assert scores.accuracy == accuracy_score(splits.test.labels, predicted)
    assert np.trace(scores.confusion_matrix) == (predicted == splits.test.labels).sum()
    per_class = f1_score(splits.test.labels, predicted, average=None, labels=list(range(splits.spec.classes)))
    assert [metrics.f1 for metrics in scores.per_class] == pytest.approx(per_class.tolist())
    assert [metrics.support for metrics in scores.per_class] == [20] * splits.spec.classes
    assert (curve.answered[-1], curve.mistakes[-1]) == (200, (predicted != splits.test.labels).sum())
    assert sum(number for *_, number in reliability) == 200
    off = sum(abs(sure - right) * number for sure, right, number in reliability) / 200
    assert off == pytest.approx(scores.expected_calibration_error, abs=1e-6)
    wrong = predicted != splits.test.labels
    assert [m.confidence for m in mistakes] == sorted(probabilities.max(1)[wrong], reverse=True)[:5]
    assert all(m.label == splits.test.labels[m.position] != m.predicted for m in mistakes)


@pytest.mark.parametrize(
    ("confidences", "correct", "bins", "expected"),
    [
        ([1.0, 1.0], [True, True], 10, 0.0),
        ([1.0, 1.0], [False, False], 10, 1.0),
        ([0.75, 0.75, 0.75, 0.75], [True, True, True, False], 10, 0.0),
        ([0.9, 0.6], [True, False], 10, (0.1 + 0.6) / 2),
        ([0.9, 0.6], [True, False], 1, 0.25),
    ],
)
def test_expected_calibration_error(confidences, correct, bins, expected):
    error = expected_calibration_error(np.array(confidences), np.array(correct), bins)
    assert error == pytest.approx(expected)


class Broken(nn.Module):
    def forward(self, inputs):
        return inputs.flatten(1)[:, : SPEC.classes] * float("nan")


def test_outputs_that_are_not_finite_are_an_error_and_not_a_score(predictor, splits):
    broken = Predictor(predictor.manifest, to_onnx(Broken(), SPEC))
    with pytest.raises(ModelError, match="not finite"):
        evaluate(broken, splits.test, EvaluationSettings())


@pytest.mark.parametrize(
    "change",
    [lambda images: images.astype(np.float32), lambda images: images[0], lambda images: images[:, None]],
    ids=["float", "one image without a batch", "one dimension more"],
)
def test_the_predictor_takes_no_other_scale_or_shape(change, splits, predictor):
    with pytest.raises(ValueError, match="images must be uint8"):
        predictor.predict(change(splits.test.images[:2]))
