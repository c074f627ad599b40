"""Data sets between steps, as arrays and texts."""

import numpy as np

from mnist_pipeline.ml.data import dataset_from_arrays, splits_from_arrays, to_arrays
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
