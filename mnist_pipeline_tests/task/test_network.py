"""Each setting of the network and of its augmentation has an effect, in every architecture."""

import pytest
import torch
from torch import nn

from mnist_pipeline.ml.model import ModelError, model_from_bytes
from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.ml.training import train
from mnist_pipeline.task.networks import build_network
from mnist_pipeline.task.spec import TaskSpec
from mnist_pipeline_tests.task.examples import SPEC, TINY, take

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
    {"mirrored": SPEC.pictures == "handwriting"},  # by default all others are
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
        model_from_bytes(trained.weights, settings(**change), SPEC)


@pytest.mark.parametrize(
    "change",
    [{"conv_channels": [8, 8], "conv_depths": [3, 5]}, {"conv_depths": [1, 4, 1]}, {"conv_depths": [1, 1, 4]}],
    ids=str,
)
def test_more_convolutions_than_the_image_has_room_for_are_refused_before_anything_is_trained(splits, change):
    with pytest.raises(ValueError, match=r"conv_depths .* are too many convolutions for 28x28 pixels"):
        train(settings(**change), splits)


@pytest.mark.parametrize(("side", "more"), [(28, 0), (32, 0), (64, 1), (96, 2), (128, 2)])
def test_the_network_grows_with_the_image_and_its_head_does_not(side, more):
    spec = TaskSpec(class_names=("a", "b"), image_shape=(side, side, 3), mean=(0.5,) * 3, std=(0.2,) * 3)
    network, usual = (build_network(TrainingSettings(), each) for each in (spec, SPEC))
    layers = [sum(isinstance(layer, nn.Conv2d) for layer in each.modules()) for each in (network, usual)]
    assert layers == [3 + more, 3]
    assert network.eval()(torch.zeros(2, 3, side, side)).shape == (2, 2)
    sizes = [sum(parameter.numel() for parameter in each.parameters()) for each in (network, usual)]
    assert sizes[0] < 5 * sizes[1]


def test_settings_of_before_build_the_same_layers_for_the_images_of_before():
    """Wide feature maps, too: the weights of versions that were stored must fit."""
    for change in ({"conv_channels": [4], "conv_depths": [1]}, {"conv_channels": [4, 8], "conv_depths": [1, 1]}):
        chosen = settings(**change)
        assert chosen.convolutions_for(28, 28) == chosen.convolutions


@pytest.mark.parametrize("size", [(48, 144), (192, 64), (32, 512)])
def test_long_and_narrow_images_have_room(size):
    spec = TaskSpec(class_names=("a", "b"), image_shape=(*size, 1), mean=(0.5,), std=(0.2,))
    assert build_network(TrainingSettings(), spec).eval()(torch.zeros(2, 1, *size)).shape == (2, 2)
