"""Data sets and specs as earlier code stored them."""

from mnist_pipeline.ml.data import SPEC_OF_BEFORE, content_digest, data_version, splits_from_arrays, to_arrays
from mnist_pipeline.task.known.mnist import MNIST
from mnist_pipeline.task.spec import TaskSpec
from mnist_pipeline_tests.ml.test_data import OTHER


def test_what_was_stored_before_there_were_specs_is_of_the_default_task(splits):
    arrays, texts = to_arrays(splits)
    del texts["spec"]
    assert splits_from_arrays(arrays, texts).spec == MNIST


def test_another_spec_is_another_version_of_the_data(splits):
    """The version of data of the default task stays what it was before specs were: nothing is trained anew for it."""
    parts = splits.parts.values()
    assert data_version(MNIST, *parts) == content_digest(*parts)
    scaled = MNIST.model_copy(update={"mean": (0.5,)})
    assert len({data_version(spec, *parts) for spec in (MNIST, scaled, OTHER)}) == 3


def test_specs_of_before_read_as_they_were_meant_and_their_digests_stay():
    grey = MNIST.model_dump()
    assert set(grey) == {"class_names", "image_shape", "mean", "std"}  # what earlier code can read
    assert MNIST.digest().startswith(SPEC_OF_BEFORE)
    assert TaskSpec.model_validate(grey) == MNIST
    before = {"class_names": ["cat", "dog"], "image_shape": [4, 5, 3], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
    assert TaskSpec.model_validate(before) == OTHER
    assert OTHER.pictures == "photos"
    assert set(OTHER.model_dump()) == set(grey)
    named = OTHER.model_copy(update={"name": "pets"})
    assert TaskSpec.model_validate_json(named.model_dump_json()) == named != OTHER
    assert named.digest() != OTHER.digest()
