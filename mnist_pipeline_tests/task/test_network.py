"""Each setting of the network and of its augmentation has an effect, in every architecture."""

import pytest

from mnist_pipeline.ml.model import ModelError, model_from_bytes
from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.ml.training import train
from mnist_pipeline.task.spec import TASK
from mnist_pipeline_tests.task.examples import TINY, take

CHANGES = [
    {"conv_channels": [8, 8, 8]},
    {"conv_depths": [1, 2, 1]},
    {"hidden_units": [16]},
    {"hidden_units": []},
    {"conv_dropout": 0.5},
    {"hidden_dropout": 0.5},
    {"rotation_degrees": 0.0},
    {"translation_pixels": 3.0},
    {"scaling_fraction": 0.0},
    {"shear_degrees": 0.0},
]


def settings(**changes) -> TrainingSettings:
    return TrainingSettings(**{**TINY, **changes})


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_each_setting_changes_the_result(splits, trained, change):
    assert train(settings(**change), splits).weights != trained.weights


def test_one_image_more_than_a_batch(splits):
    """Batch norm over a single 1x1 feature map would have nothing to normalise by."""
    few = splits._replace(train=take(splits.train, 10))
    train(settings(conv_depths=[1, 3, 1], batch_size=99, epochs=1), few)


@pytest.mark.parametrize(
    "change", [{"conv_depths": [1, 2, 1]}, {"conv_channels": [4, 8], "conv_depths": [3, 4]}], ids=str
)
def test_a_resumed_training_gives_the_weights_of_an_uninterrupted_one(splits, tmp_path, change):
    class Killed(Exception):
        pass

    def die(metrics):
        raise Killed

    chosen = settings(**change)
    with pytest.raises(Killed):
        train(chosen, splits, die, tmp_path)
    resumed = train(chosen, splits, checkpoint_dir=tmp_path)
    assert resumed.resumed_after == 1
    assert resumed.weights == train(chosen, splits).weights


@pytest.mark.parametrize(
    "change", [{"conv_channels": [8, 8, 8]}, {"conv_depths": [1, 3, 1]}, {"hidden_units": []}], ids=str
)
def test_weights_of_another_architecture_are_refused(trained, change):
    with pytest.raises(ModelError, match="do not fit"):
        model_from_bytes(trained.weights, settings(**change), TASK)
