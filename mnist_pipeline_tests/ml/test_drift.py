"""The comparison itself. (What is noticed in the images of the task: task/test_drift.)"""

import numpy as np
import pytest

from mnist_pipeline.ml import drift
from mnist_pipeline.ml.records import DriftReference


@pytest.fixture
def images(splits) -> np.ndarray:
    return splits.validation.images


@pytest.fixture
def probabilities(images, spec) -> np.ndarray:
    chance = np.random.default_rng(0).dirichlet(np.ones(spec.classes), len(images))
    return chance.astype(np.float32)


@pytest.fixture
def reference(images, probabilities, spec) -> DriftReference:
    return drift.reference(images, probabilities, spec)


def test_the_same_images_are_alike(reference, images, probabilities, spec):
    monitor = drift.DriftMonitor(reference, spec)
    monitor.add(images, probabilities)
    report = monitor.report()
    assert report.images == len(images)
    assert report.drifted == []
    assert max(finding.population_stability_index for finding in report.findings) == pytest.approx(0)


def test_statistics_that_came_or_went_since_the_model_was_saved_are_left_out(reference, images, probabilities, spec):
    first, *others = reference.histograms.items()
    other = dict(others) | {"of another version of the code": first[1]}
    monitor = drift.DriftMonitor(DriftReference(images=reference.images, histograms=other), spec)
    monitor.add(images, probabilities)
    assert [finding.statistic for finding in monitor.report().findings] == [name for name, _ in others]


def test_the_population_stability_index_by_hand():
    p, q = np.array([0.6, 0.4]), np.array([0.4, 0.6])
    by_hand = float(((p - q) * np.log(p / q)).sum())
    assert drift.population_stability_index(p * 1e6, q * 1e6) == pytest.approx(by_hand, abs=1e-5)


def test_no_image_is_an_error(reference, spec):
    with pytest.raises(ValueError, match="no image"):
        drift.DriftMonitor(reference, spec).report()
