"""The variables that name a data set."""

import pytest

from mnist_pipeline.definitions import resources
from mnist_pipeline.defs.resources.folders import RawDataResource
from mnist_pipeline.environment import Environment, EnvironmentInvalid


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {"dataset": "mnist", "source": "auto", "directory": "/s/mnist"}),
        ({"MNIST_SOURCE": "sample", "MNIST_DIR": "/m"}, {"source": "sample", "directory": "/m"}),
        ({"DATASET_SOURCE": "directory", "DATASET_DIR": "/m"}, {"source": "directory", "directory": "/m"}),
        ({"DATASET": "kmnist"}, {"dataset": "kmnist", "directory": "/s/kmnist/raw"}),
        (
            {"DATASET": "folder", "DATASET_DIR": "/d/My Cats", "IMAGE_SIZE": "48x64", "IMAGE_CHANNELS": "1"},
            {"directory": "/d/My Cats", "image_size": (48, 64), "image_channels": 1, "pictures": None},
        ),
        (
            {"DATASET": "folder", "DATASET_DIR": "/d", "DATASET_NAME": "x", "IMAGE_SIZE": "64", "PICTURES": "cutouts"},
            {"name": "x", "image_size": (64, 64), "pictures": "cutouts"},
        ),
    ],
    ids=str,
)
def test_the_data_set_is_named_by_variables_and_the_names_of_before_still_work(variables, expected):
    environment = Environment.read({"STORAGE_ROOT": "/s"} | variables)
    settings = environment.dataset_settings()
    assert settings.model_dump(include=set(expected)) == expected
    raw_data = resources(environment)["raw_data"]
    assert isinstance(raw_data, RawDataResource)
    assert raw_data.settings() == settings


@pytest.mark.parametrize(
    ("variables", "place", "task"),
    [
        ({}, "/s/models", "mnist"),
        ({"DATASET": "kmnist"}, "/s/kmnist/models", "kmnist"),
        ({"DATASET": "folder", "DATASET_DIR": "/d/My Cats"}, "/s/my_cats/models", "my_cats"),
        ({"DATASET": "folder", "DATASET_DIR": "/d/My Cats", "DATASET_NAME": "pets"}, "/s/pets/models", "pets"),
        ({"DATASET": "kmnist", "MODEL_STORE": "/one"}, "/one", "kmnist"),
    ],
)
def test_each_task_has_places_of_its_own(variables, place, task):
    environment = Environment.read({"STORAGE_ROOT": "/s"} | variables)
    assert (environment.model_address(), environment.task_name) == (place, task)
    folder = "" if task == "mnist" else f"{task}/"
    with pytest.raises(EnvironmentInvalid, match=f"there is no /s/{folder}branches/x: make experiment NAME=x"):
        Environment.read({"STORAGE_ROOT": "/s", "EXPERIMENT": "x"} | variables)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"DATASET": "cifar"}, "DATASET must be one of .*fashion_mnist, .*folder, not 'cifar'"),
        ({"DATASET": "folder"}, "needs DATASET_DIR"),
        ({"DATASET": "folder", "DATASET_DIR": "/d/2026"}, "set DATASET_NAME"),
        (
            {"DATASET": "folder", "DATASET_DIR": "/d/x", "DATASET_SOURCE": "download"},
            "the source 'download' has no effect",
        ),
        ({"DATASET": "folder", "DATASET_DIR": "s3://x/y"}, "only a local folder will do"),
        ({"DATASET": "kmnist", "MNIST_DIR": "/m"}, "MNIST_DIR would be ignored with DATASET=kmnist: set DATASET_DIR"),
        ({"MNIST_DIR": "/m", "DATASET_DIR": "/n"}, "MNIST_DIR is the name of before of DATASET_DIR: set one"),
        ({"IMAGE_SIZE": "64"}, "IMAGE_SIZE has an effect only with the data set 'folder'"),
        ({"DATASET": "folder", "DATASET_DIR": "/d/models"}, "the task cannot be called 'models'"),
        ({"DATASET": "folder", "DATASET_DIR": "/d/x", "DATASET_NAME": "kmnist"}, "the task cannot be called 'kmnist'"),
        ({"DATASET": "folder", "DATASET_DIR": "/d/x", "DATASET_NAME": "My x"}, "DATASET_NAME: .*pattern"),
        ({"DATASET_NAME": "x"}, "DATASET_NAME has an effect only with the data set 'folder'"),
        ({"DATASET": "folder", "DATASET_DIR": "/d/x", "IMAGE_SIZE": "big"}, "IMAGE_SIZE: "),
        ({"DATASET": "folder", "DATASET_DIR": "/d/x", "IMAGE_SIZE": "0"}, r"IMAGE_SIZE must be in 1\.\.4096"),
        ({"DATASET": "folder", "DATASET_DIR": "/d/x", "IMAGE_CHANNELS": "2"}, "IMAGE_CHANNELS: "),
        ({"DATASET": "folder", "DATASET_DIR": "/d/x", "PICTURES": "paintings"}, "PICTURES: "),
    ],
    ids=str,
)
def test_a_data_set_that_is_not_there_or_variables_that_would_be_ignored_are_refused(variables, message):
    with pytest.raises(EnvironmentInvalid, match=message):
        Environment.read(variables)


def test_an_empty_name_of_before_counts_as_absent_and_a_wrong_value_is_refused():
    environment = Environment.read({"STORAGE_ROOT": "/s", "MNIST_SOURCE": "sample", "MNIST_DIR": ""})
    assert environment.dataset_settings().directory == "/s/mnist"
    assert Environment(storage_root="/s", mnist_source="sample").dataset_source == "sample"
    with pytest.raises(EnvironmentInvalid, match="MNIST_SOURCE: Input should be 'auto', 'directory'"):
        Environment.read({"MNIST_SOURCE": "web"})
