"""Data sets between steps, as arrays and texts."""

import numpy as np
import pytest
from pydantic import ValidationError

from mnist_pipeline.files.errors import DataError
from mnist_pipeline.ml.data import (
    dataset_from_arrays,
    split,
    splits_from_arrays,
    to_arrays,
)
from mnist_pipeline.ml.settings import SplitSettings
from mnist_pipeline.task.dataset import Dataset, LabelledImages, no_images
from mnist_pipeline.task.spec import TaskSpec
from mnist_pipeline_tests.task.examples import SPEC

OTHER = TaskSpec(class_names=("cat", "dog"), image_shape=(4, 5, 3), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))


def test_data_sets_survive_as_arrays_with_their_spec(small_dataset, splits):
    for value, restore in ((small_dataset, dataset_from_arrays), (splits, splits_from_arrays)):
        other = value._replace(spec=OTHER)
        again = restore(*to_arrays(other))
        assert again.spec == OTHER
        assert np.array_equal(again.test.images, value.test.images)
        assert np.array_equal(again.train.labels, value.train.labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ("a", "a")}, "each class needs a name of its own"),
        ({"class_names": ("T-shirt/top", "T-shirt top")}, "would share the folder 't-shirt_top'"),
        ({"class_names": ("...", "b")}, "has no letter or figure"),
        ({"class_names": (" ", "b")}, "cannot name classes"),
        ({"class_names": ("a",)}, "at least 2"),
        ({"image_shape": (4, 5, 2)}, "1 or 3 channels"),
        ({"image_shape": (0, 5, 3)}, "height, width, channels"),
        ({"mean": (0.5,)}, "need 3 numbers each"),
        ({"std": (0.2, 0.0, 0.1)}, "std is above 0"),
        ({"std": (0.2, float("inf"), 0.1)}, "finite"),
        ({"class_names": ("a\0", "b")}, "cannot name classes"),
        ({"class_names": ("a" * 101, "b")}, "cannot name classes"),
        ({"image_shape": (10**5, 5, 3)}, r"1\.\.4096"),
        ({"pictures": "handwriting"}, "are grey, with 1 channel"),
        ({"pictures": "paintings"}, "'handwriting', 'cutouts' or 'photos'"),
        ({"name": "My flowers"}, "should match pattern"),
    ],
)
def test_a_spec_that_does_not_hold_together_is_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        TaskSpec(**OTHER.model_dump() | change)


def test_classes_have_folders_that_any_file_system_can_keep_apart():
    def folders(*names: str) -> tuple[str, ...]:
        return TaskSpec(class_names=names, image_shape=(4, 5, 1), mean=(0.5,), std=(0.2,)).class_folders

    assert folders("T-shirt/top", "Ankle boot", "0") == ("t-shirt_top", "ankle_boot", "0")
    assert folders("A", "a", "B", "née/x") == ("upper_a", "a", "upper_b", "née_x")
    spec = TaskSpec(class_names=("A", "a", "Big dog", "x/y"), image_shape=(4, 5, 1), mean=(0.5,), std=(0.2,))
    assert spec.known_folders == {
        **{"A": 0, "a": 1, "Big dog": 2},
        **{"upper_a": 0, "a": 1, "big_dog": 2, "x_y": 3},
    }
    with pytest.raises(ValidationError, match="'a b' and 'a/b' would share the folder 'a_b'"):
        folders("a b", "a/b")


@pytest.mark.parametrize(
    ("counts", "fraction", "message"),
    [
        ([3, 1, 3], 0.2, "at least 2 training images to be split: 1 has fewer"),
        ([4] * 10, 0.2, r"validation_fraction 0\.2 of 40 training images leaves fewer than one of each of 10 classes"),
        ([4] * 10, 0.9, "set it nearer to 0.5"),
    ],
)
def test_too_few_images_to_split_are_refused_with_what_to_do(counts, fraction, message):
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.uint8)
    part = LabelledImages(np.zeros((len(labels), 28, 28), np.uint8), labels)
    with pytest.raises(DataError, match=message):
        split(Dataset(part, part, "", False, SPEC), no_images(SPEC), SplitSettings(validation_fraction=fraction))
