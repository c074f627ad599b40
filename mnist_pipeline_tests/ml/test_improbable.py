"""Labels that a network finds improbable: found where they are wrong, and few where they are right."""

import numpy as np
import pytest
import torch

from mnist_pipeline.ml import improbable
from mnist_pipeline.ml.data import split
from mnist_pipeline.ml.improbable import improbable_labels, out_of_fold, suspects
from mnist_pipeline.ml.model import model_from_bytes
from mnist_pipeline.ml.settings import SplitSettings, TrainingSettings
from mnist_pipeline.ml.training import train
from mnist_pipeline.task.dataset import LabelledImages, no_images
from mnist_pipeline.task.networks import build_network
from mnist_pipeline_tests.task.examples import GOOD, SPEC, embedded_images

WRONG = 40


@pytest.fixture(scope="module")
def splits():
    return split(embedded_images(), no_images(SPEC), SplitSettings())


def with_wrong_labels(part: LabelledImages, of: int, called: int, count: int) -> tuple[LabelledImages, np.ndarray]:
    labels = part.labels.copy()
    wrong = np.flatnonzero(labels == of)[:count]
    labels[wrong] = called
    return LabelledImages(part.images, labels), wrong


def test_labels_that_were_changed_before_the_training_are_found(splits):
    swapped, wrong = with_wrong_labels(splits.train, 4, 9, WRONG)
    in_validation, also_wrong = with_wrong_labels(splits.validation, 1, 7, 5)
    settings = TrainingSettings(**GOOD)
    result = train(settings, splits._replace(train=swapped, validation=in_validation))
    network = model_from_bytes(result.weights, settings, SPEC)
    found = improbable_labels(network, SPEC, [swapped, in_validation])
    in_train = {label.position for label in found if label.part == 0}
    assert len(in_train & set(wrong)) >= 0.4 * WRONG
    assert {label.position for label in found if label.part == 1} & set(also_wrong)
    wrongly = [label for label in found if label.position not in (wrong, also_wrong)[label.part]]
    assert len(wrongly) <= 0.2 * len(found)
    kinds = [label.kind for label in found]
    assert kinds[0] == (9, 4)  # the commonest first, and of each kind the least probable
    assert [kinds.count(kind) for kind in kinds] == sorted((kinds.count(kind) for kind in kinds), reverse=True)
    first = [label.probability_given for label in found if label.kind == (9, 4)]
    assert first == sorted(first)
    fours = [label for label in found if label.part == 0 and label.position in wrong]
    assert {label.given for label in fours} == {9}
    assert np.mean([label.likeliest == 4 for label in fours]) > 0.95
    assert all(0 <= label.probability_given < label.probability_likeliest <= 1 for label in fours)
    assert found == improbable_labels(network, SPEC, [swapped, in_validation])


def test_few_right_labels_are_improbable(splits, good_network):
    assert len(improbable_labels(good_network, SPEC, [splits.train, splits.validation])) < 0.005 * 4000


@pytest.fixture(scope="module")
def good_network(splits) -> torch.nn.Module:
    settings = TrainingSettings(**GOOD)
    return model_from_bytes(train(settings, splits).weights, settings, SPEC)


def test_a_label_is_suspect_where_another_class_is_as_sure_as_it_usually_is():
    labels = np.array([0, 0, 0, 1, 1, 1])
    # The means of each class among its own images are 0.7 and 0.6.
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.1, 0.9], [0.25, 0.75], [0.85, 0.15]])
    assert [found.tolist() for found in suspects(probabilities, labels)] == [[2, 5], [1, 0]]
    probabilities[2] = [0.45, 0.55]  # the likeliest class, but less sure than it usually is
    assert suspects(probabilities, labels)[0].tolist() == [5]
    # The threshold of class 1 is low, and the second image reaches no other: but its label is more probable.
    probabilities = np.array([[0.95, 0.05], [0.55, 0.45], [0.7, 0.3], [0.6, 0.4]])
    assert suspects(probabilities, np.array([0, 0, 1, 1]))[0].tolist() == []


def test_no_label_is_fitted_on_itself():
    """Of features that say nothing, a discriminant that had seen the labels would still know some of them."""
    chance = np.random.default_rng(0)
    features = chance.normal(size=(200, 150)).astype(np.float32)
    labels = chance.integers(0, 2, 200)
    right = out_of_fold(features, labels, 2).argmax(1) == labels
    assert 0.35 < right.mean() < 0.65


@pytest.mark.parametrize("counts", [[0, 0, 0], [1, 0, 0], [3, 0, 0], [1, 1, 1], [2, 2, 0], [9, 1, 0], [9, 9, 1]])
def test_rare_classes_are_not_judged(counts):
    labels = np.repeat(np.arange(3), counts)
    features = np.random.default_rng(0).normal(size=(len(labels), 4)).astype(np.float32)
    probabilities = out_of_fold(features, labels, 3)
    assert np.isfinite(probabilities).all()
    for label, count in enumerate(counts):
        if count == 1:
            assert (probabilities[labels == label, label] == 1).all()
    rare = np.flatnonzero(np.array(counts) == 1)
    assert not np.isin(labels[suspects(probabilities, labels)[0]], rare).any()


def test_of_many_images_some_of_each_class_are_fitted_on(monkeypatch):
    chance = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), [500, 400, 12])
    features = (labels[:, None] == np.arange(3)) * 6 + chance.normal(size=(len(labels), 3))
    features = features.astype(np.float32)
    whole = out_of_fold(features, labels, 3)
    monkeypatch.setattr(improbable, "MOST_FITTED", 60)
    few = out_of_fold(features, labels, 3)
    assert (few.argmax(1) == labels).mean() > 0.97 < (whole.argmax(1) == labels).mean()
    assert (few[labels == 2, :2].max(1) > 0).all()  # they were judged, rare as they are


def test_features_that_never_change_do_no_harm(splits):
    network = build_network(TrainingSettings(), SPEC).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert improbable_labels(network, SPEC, [splits.validation]) == []
