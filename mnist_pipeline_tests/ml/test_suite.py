"""The evaluation suite: its images, its slices, their scores."""

import numpy as np
import pytest
from scipy.stats import binomtest

from mnist_pipeline.ml.data import content_digest
from mnist_pipeline.ml.records import Splits
from mnist_pipeline.ml.suite import HELD_OUT, Suite, slice_scores, suite
from mnist_pipeline.task.corruptions import corrupted, corruptions
from mnist_pipeline.task.dataset import LabelledImages
from mnist_pipeline.task.spec import TaskSpec
from mnist_pipeline.task.statistics import image_statistics
from mnist_pipeline_tests.task.examples import SPEC, embedded_images, take

PHOTOS = TaskSpec(
    class_names=("cat", "dog"), image_shape=(32, 48, 3), mean=(0.5,) * 3, std=(0.2,) * 3, pictures="photos"
)


def suite_of(splits: Splits) -> Suite:
    return suite(splits, content_digest(splits.test))


def images_of(found: Suite) -> np.ndarray:
    return np.concatenate([part for images in found.sets for part in images.parts()])


@pytest.fixture(scope="module")
def joined(splits: Splits) -> Splits:
    """With 400 test images and ten held-out labels."""
    full = embedded_images()
    return splits._replace(test=take(full.test, 40), held_out=take(full.train, 1))


def test_the_slices_are_what_their_names_say(joined):
    found = suite_of(joined)
    images, names = images_of(found), [one.name for one in found.slices]
    assert len(images) == len(found.labels) == 400 * (1 + len(corruptions(SPEC))) + 10
    assert len(set(names)) == len(names)
    slices = {one.name: one.positions for one in found.slices}
    for label, name in enumerate(SPEC.class_names):
        assert np.array_equal(slices[f"class {name}"], np.flatnonzero(joined.test.labels == label))
    statistics = image_statistics(joined.test.images, SPEC)
    for name, values in statistics.items():
        low, high = (slices[f"{name}, {end} tenth"] for end in ("lowest", "highest"))
        assert 36 <= len(low) <= 60 and 36 <= len(high) <= 60
        assert values[low].max() < np.delete(values, low).min()
        assert values[high].min() > np.delete(values, high).max()
    for name in corruptions(SPEC):
        chosen = slices[f"corrupted by {name}"]
        assert np.array_equal(images[chosen], corrupted(joined.test.images, name, SPEC))
        assert np.array_equal(found.labels[chosen], joined.test.labels)
    assert np.array_equal(images[slices[HELD_OUT]], joined.held_out.images)
    assert np.array_equal(images[: found.test_images], joined.test.images)


def test_few_images_are_no_slice_unless_they_are_held_out(joined, splits):
    few = joined._replace(test=LabelledImages(*(array[::20] for array in joined.test)))
    assert [one.name for one in suite_of(few).slices] == [HELD_OUT]
    assert HELD_OUT not in [one.name for one in suite_of(splits).slices]


def test_of_many_test_images_some_are_corrupted(joined, monkeypatch):
    monkeypatch.setattr("mnist_pipeline.ml.suite.CORRUPTED_IMAGES", 100)
    found = suite_of(joined)
    blurred = next(one.positions for one in found.slices if one.name == "corrupted by blur")
    assert len(blurred) == 100
    assert set(found.labels[blurred]) == set(range(SPEC.classes))
    monkeypatch.setattr("mnist_pipeline.ml.suite.PART", 64)
    images, parts = images_of(suite_of(joined)), np.linspace(0, 399, 100).astype(int)
    assert len(images) == len(found.labels)
    plain = joined.test.images[parts]
    again = np.concatenate([corrupted(plain[:64], "blur", SPEC), corrupted(plain[64:], "blur", SPEC, seed=64)])
    assert np.array_equal(images[blurred], again)
    monkeypatch.setattr("mnist_pipeline.ml.suite.PART", 1024)
    assert found.sets[0].digest != suite_of(joined._replace(test=take(joined.test, 20))).sets[0].digest
    monkeypatch.setattr("mnist_pipeline.ml.suite.CORRUPTED_IMAGES", 99)
    assert suite_of(joined).sets[0].digest != found.sets[0].digest


def test_scores_have_intervals(joined):
    found = suite_of(joined)
    correct = np.random.default_rng(0).random(len(found.labels)) < 0.9
    for score, one in zip(slice_scores(found, correct), found.slices, strict=True):
        hits = int(correct[one.positions].sum())
        assert (score.name, score.images, score.accuracy) == (one.name, len(one.positions), hits / len(one.positions))
        interval = binomtest(hits, score.images).proportion_ci(method="wilson")
        assert (score.low, score.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize("spec", [SPEC, PHOTOS])
def test_corruptions_change_images_mildly_and_always_alike(spec, small_dataset):
    chance = np.random.default_rng(0)
    images = small_dataset.test.images[:60]
    if spec is PHOTOS:
        rows, columns = np.mgrid[:32, :48]
        phases = chance.uniform(1, 3, (60, 1, 1, 3)) * (rows + columns)[None, :, :, None] / 9
        images = np.rint(127 + 100 * np.sin(phases)).astype(np.uint8)
    assert len(corruptions(spec)) == 12
    for name in corruptions(spec):
        found = corrupted(images, name, spec)
        assert (found.dtype, found.shape) == (np.uint8, images.shape), name
        assert np.array_equal(found, corrupted(images.copy(), name, spec)), name
        changed = (found != images).any(tuple(range(1, images.ndim)))
        assert changed.mean() > 0.9, name
        alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(images, found, strict=True)]
        assert np.median(alike) > 0.3, name
    assert not np.array_equal(corrupted(images, "shot noise", spec), corrupted(images, "shot noise", spec, seed=1))
    with pytest.raises(KeyError):
        corrupted(images, "rain", spec)
