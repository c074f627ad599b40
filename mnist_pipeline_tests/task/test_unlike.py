"""What is no digit is told to be none; digits by another hand are not. BENCHMARKS.md has the default network."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mnist_pipeline.ml.data import split
from mnist_pipeline.ml.export import export
from mnist_pipeline.ml.manifest import ModelManifest
from mnist_pipeline.ml.predictor import INPUT, UNLIKENESS, Predictor
from mnist_pipeline.ml.settings import SplitSettings, TrainingSettings
from mnist_pipeline.ml.training import train
from mnist_pipeline.task.dataset import no_images
from mnist_pipeline_tests.task import strange
from mnist_pipeline_tests.task.examples import GOOD, SPEC, embedded_images

COUNT = 200
LEAST_AREA = {
    "letters": (lambda: strange.letters(strange.fonts()[::3]), 0.95),
    "noise": (lambda: strange.noise(COUNT), 0.99),
    "scribbles": (lambda: strange.scribbles(COUNT), 0.97),
    "photos": (lambda: strange.photos(COUNT), 0.99),
    "prepared photos": (lambda: strange.prepared_photos(COUNT), 0.97),
}
"""For each kind of pictures the least area under the ROC curve against the test digits, of this small network."""


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    splits, settings = split(embedded_images(), no_images(SPEC), SplitSettings()), TrainingSettings(**GOOD)
    exported = export(train(settings, splits).weights, settings.architecture(), splits)
    manifest = ModelManifest(name="a version", weights_sha256="", task=SPEC, network=settings.architecture())
    return Predictor(manifest, exported.onnx)


def scores(predictor: Predictor, images: np.ndarray) -> np.ndarray:
    session = predictor._session
    return np.asarray(session.run([UNLIKENESS], {INPUT: images.reshape(-1, *SPEC.image_shape)})[0])


def unlike(predictor: Predictor, images: np.ndarray) -> float:
    found = predictor.answer(images).unlike
    assert found is not None
    return float(found.mean())


@pytest.mark.parametrize("kind", LEAST_AREA)
def test_what_is_no_digit_is_told_apart(predictor, kind):
    pictures, least = LEAST_AREA[kind]
    digits, others = scores(predictor, embedded_images().test.images), scores(predictor, pictures())
    truth = np.repeat([0, 1], [len(digits), len(others)])
    area = roc_auc_score(truth, np.concatenate([digits, others]))
    print(f"{kind}: area {area:.3f}, {(others > 0).mean():.2f} are told to be unlike the training data")
    assert area >= least


def test_digits_are_hardly_ever_refused_by_another_hand_neither(predictor):
    assert unlike(predictor, embedded_images().test.images) < 0.03
    assert unlike(predictor, strange.by_another_hand()) <= 0.1
    assert unlike(predictor, strange.noise(COUNT)) == 1
