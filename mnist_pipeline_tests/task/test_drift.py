"""Quiet on images like those of the validation split, loud on others, at any size of batch."""

import json
import re

import numpy as np
import pytest
from scipy import ndimage

from mnist_pipeline.ml import drift
from mnist_pipeline.ml.model import model_from_bytes, predict_logits
from mnist_pipeline.ml.plots import drift_histograms
from mnist_pipeline.ml.records import DriftReference, DriftReport
from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.task.known.mnist import MNIST
from mnist_pipeline.task.spec import TaskSpec
from mnist_pipeline.task.statistics import light_statistics
from mnist_pipeline_tests.task.examples import TINY, embedded_images


@pytest.fixture(scope="module")
def predict(trained):
    network = model_from_bytes(trained.weights, TrainingSettings(**TINY), MNIST)
    return lambda images: predict_logits(network, images, MNIST).softmax(1).numpy()


@pytest.fixture(scope="module")
def test_images() -> np.ndarray:
    return embedded_images().test.images


@pytest.fixture(scope="module")
def reference(predict) -> DriftReference:
    """Of digits that the model did not train on."""
    images = embedded_images().train.images[-1500:]
    return drift.reference(images, predict(images), MNIST)


def compare(reference: DriftReference, predict, images: np.ndarray, parts: int = 1) -> DriftReport:
    monitor = drift.DriftMonitor(reference, MNIST)
    for part in np.array_split(images, parts):
        monitor.add(part, predict(part))
    return monitor.report()


def blurred(images: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(images.astype(float), (0, 1, 1)).astype(np.uint8)


def noise(images: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)


@pytest.mark.parametrize("size", [30, 1000])
@pytest.mark.parametrize(
    ("change", "statistics"),
    [
        (lambda images: 255 - images, {"ink", "stroke_width", "centre_x", "centre_y"}),
        (blurred, {"stroke_width"}),
        (lambda images: np.roll(images, 2, axis=2), {"centre_x"}),
        (lambda images: np.roll(images, 2, axis=1), {"centre_y"}),
        (noise, {"ink", "stroke_width"}),
        (np.zeros_like, {"ink", "stroke_width", "predicted_label"}),
    ],
    ids=["inverted", "blurred", "shifted right", "shifted down", "noise", "blank"],
)
def test_other_images_are_noticed(reference, predict, test_images, size, change, statistics):
    images = np.random.default_rng(1).permutation(test_images)[:size]
    assert statistics <= set(compare(reference, predict, change(images)).drifted)


def test_only_one_digit_is_noticed(reference, predict):
    digits = embedded_images().test
    sevens = digits.images[digits.labels == 7]
    assert "predicted_label" in compare(reference, predict, sevens).drifted


def test_what_drifted_is_told_by_where_the_images_are(reference, predict, test_images):
    report = compare(reference, predict, blurred(test_images))
    said = {text.split()[0]: text for text in drift.where_it_drifted(reference, report, MNIST)}
    assert set(said) - {"predicted"} == set(report.drifted) - {"predicted_label"}
    histogram = reference.histograms["stroke_width"]
    assert said["stroke_width"].startswith("stroke_width above ")
    words = r"stroke_width above (\S+): (\d+)% of the batch, (\d+)% of the validation images"
    found = re.fullmatch(words, said["stroke_width"])
    assert found
    edge, share, usual = found.groups()
    assert float(edge) > np.median(histogram.edges)
    assert int(share) > 50 > int(usual)
    digits = embedded_images().test
    sevens = compare(reference, predict, digits.images[digits.labels == 7])
    [told] = [text for text in drift.where_it_drifted(reference, sevens, MNIST) if text.startswith("predicted")]
    assert told.startswith("predicted to be 7: ")
    light = drift.where_it_drifted(reference, compare(reference, predict, np.zeros_like(test_images)), MNIST)
    assert any(text.startswith("ink below ") and "100% of the batch" in text for text in light)
    assert drift.where_it_drifted(reference, compare(reference, predict, test_images), MNIST) == []


def test_the_test_images_are_quiet(reference, predict, test_images):
    assert compare(reference, predict, test_images).drifted == []


def test_small_batches_alarm_rarely(reference, predict, test_images):
    random, alarms = np.random.default_rng(0), 0
    for _ in range(200):
        chosen = random.permutation(len(test_images))[: random.integers(1, 200)]
        alarms += bool(compare(reference, predict, test_images[chosen]).drifted)
    assert alarms <= 4


def test_how_a_batch_is_cut_up_does_not_matter(reference, predict, test_images):
    reports = [compare(reference, predict, test_images, parts) for parts in (1, 7)]
    counts = [{finding.statistic: finding.counts for finding in report.findings} for report in reports]
    assert counts[0]["ink"] == counts[1]["ink"]
    assert reports[0].images == reports[1].images == len(test_images)
    assert all(sum(found) == len(test_images) for found in counts[0].values())


def test_the_statistics_of_a_known_image():
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 4:24, 10:13] = 255  # a stroke of 3 by 20 pixels
    sure = np.eye(10, dtype=np.float32)[[4]]
    found = {name: values[0] for name, values in drift.statistics(image, sure, MNIST).items()}
    assert found["predicted_label"] == 4
    assert found["certainty"] == pytest.approx(6)
    assert found["ink"] == pytest.approx(60 / 784)
    assert found["stroke_width"] == pytest.approx(2 * 60 / 46)  # area over half the outline
    assert (found["centre_x"], found["centre_y"]) == (11, 13.5)


def test_the_statistics_of_an_image_with_ink_on_its_borders(predict):
    image = np.random.default_rng(0).integers(0, 256, (1, 28, 28), np.uint8)
    found = {name: values[0] for name, values in drift.statistics(image, predict(image), MNIST).items()}
    pixels = image[0].astype(float)
    framed = np.pad(pixels, 1)
    outline = np.abs(np.diff(framed, axis=0)).sum() + np.abs(np.diff(framed, axis=1)).sum()
    assert found["stroke_width"] == 2 * pixels.sum() / outline
    rows, columns = np.indices((28, 28))
    assert found["centre_x"] == np.average(columns, weights=pixels)
    assert found["centre_y"] == np.average(rows, weights=pixels)


def test_the_reference_survives_json_and_the_plot_is_a_picture(reference, predict, test_images):
    again = DriftReference.model_validate(json.loads(reference.model_dump_json()))
    assert again == reference
    picture = drift_histograms(again, compare(again, predict, 255 - test_images), MNIST)
    assert picture.startswith(b"\x89PNG")


def test_the_statistics_of_light_by_hand():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[0, :, :2] = (255, 0, 0)  # the left half red
    images[1] = (51, 102, 153)
    found = light_statistics(images)
    assert {name: values.tolist() for name, values in found.items()} == {
        "brightness": pytest.approx([1 / 6, 0.4]),
        "contrast": pytest.approx([1 / 6, 0], abs=1e-6),
        "sharpness": pytest.approx([1 / 3 / 3 / 2, 0], abs=1e-6),  # one step of three, across and not down
        "red": pytest.approx([0.5, 0.2]),
        "green": pytest.approx([0, 0.4]),
        "blue": pytest.approx([0, 0.6]),
    }
    assert set(light_statistics(images[..., 0])) == {"brightness", "contrast", "sharpness"}


def test_a_batch_that_is_darker_blurred_or_reddened_drifts_in_just_that():
    chance = np.random.default_rng(0)
    spec = TaskSpec(class_names=("a", "b"), image_shape=(16, 16, 3), mean=(0.5,) * 3, std=(0.2,) * 3)
    ground = chance.integers(60, 160, (600, 1, 1, 3))  # each photo has its own light
    photos = (ground + chance.integers(-20, 21, (600, 16, 16, 1)) + 20).astype(np.uint8)
    sure = np.full((600, 2), 0.5, np.float32)

    def drifted(images: np.ndarray) -> set[str]:
        monitor = drift.DriftMonitor(drift.reference(photos[:300], sure[:300], spec), spec)
        monitor.add(images, sure[300:])
        return set(monitor.report().drifted)

    other = photos[300:]
    assert drifted(other) == set()
    assert "sharpness" in drifted(np.repeat(other[:, :, ::4], 4, axis=2))
    reddened = np.clip(other.astype(int) + np.array([90, 0, 0]), 0, 255).astype(np.uint8)
    assert "red" in drifted(reddened)
    assert "green" not in drifted(reddened)
    assert {"brightness", "red", "green", "blue"} <= drifted((other * 0.4).astype(np.uint8))
