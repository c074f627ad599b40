"""Labelled images that never train."""

import io

import numpy as np
import pytest
from PIL import Image

from mnist_pipeline.ml.data import data_version, split
from mnist_pipeline.ml.holding_out import held_out
from mnist_pipeline.ml.settings import SplitSettings
from mnist_pipeline.task.dataset import LabelledImages, no_images
from mnist_pipeline.task.preprocessing import prepare
from mnist_pipeline_tests.task.examples import SPEC, embedded_images

SETTINGS = SplitSettings()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return embedded_images().train.images[::4]


def again(images: np.ndarray) -> np.ndarray:
    """The same drawings, photographed once more: larger, with the losses of JPEG, prepared anew."""
    found = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).resize((140, 140), Image.Resampling.BICUBIC).save(file, "JPEG", quality=60)
        found.append(prepare(Image.open(file), SPEC))
    return np.stack(found)


def test_one_in_five_is_held_out_whatever_else_comes_and_in_whatever_order(images):
    chosen = held_out(images, SETTINGS)
    assert 0.16 < chosen.mean() < 0.24
    assert np.array_equal(held_out(images[::-1], SETTINGS)[::-1], chosen)
    few = np.random.default_rng(0).permutation(len(images))[:300]
    assert (held_out(images[few], SETTINGS) != chosen[few]).mean() < 0.05  # where a leader is missing
    assert held_out(images, SplitSettings(held_out_fraction=0)).sum() == 0
    more = held_out(images, SplitSettings(held_out_fraction=0.5))
    assert 0.45 < more.mean() < 0.55
    assert not (chosen & ~more).any()
    assert held_out(no_images(SPEC).images, SETTINGS).shape == (0,)


def test_pictures_of_one_drawing_go_together(images):
    first = again(images[:300])
    small = np.stack([prepare(Image.fromarray(image).resize((90, 90)), SPEC) for image in images[:300]])
    together = held_out(np.concatenate([first, small]), SETTINGS).reshape(2, -1)
    assert not np.array_equal(first, small)
    apart = (together[0] != together[1]).mean()
    assert apart < 0.08  # by chance it would be 0.32
    photos = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
    lighter = np.minimum(photos, 250) + 5
    together = held_out(np.concatenate([photos, lighter]), SplitSettings(held_out_fraction=0.5)).reshape(2, -1)
    assert np.array_equal(*together)
    assert 0 < together.mean() < 1


def test_the_split_holds_them_out_of_training(small_dataset, images):
    labels = np.arange(len(images), dtype=np.uint8) % SPEC.classes
    shifted = np.roll(images, 1, 1)
    plain, joined = (
        split(small_dataset, part, SETTINGS) for part in (no_images(SPEC), LabelledImages(shifted, labels))
    )
    assert len(joined.held_out.labels) + len(joined.train.labels) == len(plain.train.labels) + len(images)
    assert 0.16 < len(joined.held_out.labels) / len(images) < 0.24
    chosen = held_out(shifted, SETTINGS)
    assert np.array_equal(joined.held_out.images, shifted[chosen])
    assert np.array_equal(joined.held_out.labels, labels[chosen])
    for part in ("validation", "test"):
        assert np.array_equal(getattr(joined, part).images, getattr(plain, part).images)
    # What trains already cannot be held out.
    known = split(small_dataset, LabelledImages(*(array[:100] for array in small_dataset.train)), SETTINGS)
    assert len(known.held_out.labels) == 0
    # Without any, the data is the version that it was before there were any.
    three = (plain.train, plain.validation, plain.test)
    assert data_version(SPEC, *plain.parts.values()) == data_version(SPEC, *three)
    assert data_version(SPEC, *joined.parts.values()) != data_version(SPEC, *list(joined.parts.values())[:3])
