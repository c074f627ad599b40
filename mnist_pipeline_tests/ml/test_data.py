"""Data sets between steps, as arrays and texts."""

import numpy as np
import pytest
from pydantic import ValidationError

from mnist_pipeline.ml.data import content_digest, data_version, dataset_from_arrays, splits_from_arrays, to_arrays
from mnist_pipeline.task.spec import TASK, TaskSpec

OTHER = TaskSpec(class_names=("cat", "dog"), image_shape=(4, 5, 3), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))


def test_data_sets_survive_as_arrays_with_their_spec(small_dataset, splits):
    for value, restore in ((small_dataset, dataset_from_arrays), (splits, splits_from_arrays)):
        other = value._replace(spec=OTHER)
        again = restore(*to_arrays(other))
        assert again.spec == OTHER
        assert np.array_equal(again.test.images, value.test.images)
        assert np.array_equal(again.train.labels, value.train.labels)


def test_what_was_stored_before_there_were_specs_is_of_the_default_task(splits):
    arrays, texts = to_arrays(splits)
    del texts["spec"]
    assert splits_from_arrays(arrays, texts).spec == TASK


def test_another_spec_is_another_version_of_the_data(splits):
    """The version of data of the default task stays what it was before specs were: nothing is trained anew for it."""
    parts = splits.parts.values()
    assert data_version(TASK, *parts) == content_digest(*parts)
    scaled = TASK.model_copy(update={"mean": (0.5,)})
    assert len({data_version(spec, *parts) for spec in (TASK, scaled, OTHER)}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ("a", "a")}, "each class needs a name of its own"),
        ({"class_names": ("t-shirt/top", "b")}, "cannot name the folders"),
        ({"class_names": (".x", "b")}, "cannot name the folders"),
        ({"class_names": (" ", "b")}, "cannot name the folders"),
        ({"class_names": ("a",)}, "at least 2"),
        ({"image_shape": (4, 5, 2)}, "1 or 3 channels"),
        ({"image_shape": (0, 5, 3)}, "height, width, channels"),
        ({"mean": (0.5,)}, "need 3 numbers each"),
        ({"std": (0.2, 0.0, 0.1)}, "std is above 0"),
        ({"std": (0.2, float("inf"), 0.1)}, "finite"),
        ({"class_names": ("a\0", "b")}, "cannot name the folders"),
        ({"class_names": ("a" * 101, "b")}, "cannot name the folders"),
        ({"image_shape": (10**5, 5, 3)}, r"1\.\.4096"),
    ],
)
def test_a_spec_that_does_not_hold_together_is_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        TaskSpec(**OTHER.model_dump() | change)
