"""Networks by their names: torchvision's, and one of one's own; and weights to begin with."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import models

from mnist_pipeline.environment import Environment
from mnist_pipeline.ml.data import split
from mnist_pipeline.ml.export import export
from mnist_pipeline.ml.model import model_from_bytes, predict_logits, weights_to_bytes
from mnist_pipeline.ml.onnx_file import require_standard
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.ml.records import Splits
from mnist_pipeline.ml.settings import SplitSettings, TrainingSettings
from mnist_pipeline.ml.training import train
from mnist_pipeline.task import networks
from mnist_pipeline.task.dataset import DatasetSettings, LabelledImages, no_images
from mnist_pipeline.task.image_folder import load_folder
from mnist_pipeline.task.networks import TORCHVISION, build_network, known_networks
from mnist_pipeline.task.settings import NetworkSettings
from mnist_pipeline.task.spec import TaskSpec
from mnist_pipeline_tests.conftest import Pipeline
from mnist_pipeline_tests.serve.service import Service
from mnist_pipeline_tests.task.drawing import encode
from mnist_pipeline_tests.task.examples import TINY
from mnist_pipeline_tests.task.others import photo, write_photos

OWN = """
from torch import nn


def build(settings, spec):
    height, width, channels = spec.image_shape
    features = height * width * channels
    return nn.Sequential(nn.Flatten(), nn.Linear(features, settings.hidden_units[0]), nn.ReLU(), nn.Linear(
        settings.hidden_units[0], spec.classes))
"""


def spec_of(side: int, channels: int) -> TaskSpec:
    scale = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    return TaskSpec(class_names=("a", "b", "c"), image_shape=(side, side, channels), pictures="photos", **scale)


@pytest.mark.parametrize("name", TORCHVISION)
def test_each_known_model_of_torchvision_is_built_exported_and_gives_the_same_labels(name):
    side = TORCHVISION[name]
    settings = NetworkSettings(network=name)
    for channels in (3, 1):
        spec = spec_of(side, channels)
        torch.manual_seed(0)
        network = build_network(settings, spec).eval()
        assert network(torch.zeros(2, channels, side, side)).shape == (2, 3)
    images = np.random.default_rng(0).integers(0, 256, (8, side, side), np.uint8)  # of the grey one
    some = LabelledImages(images, np.arange(8, dtype=np.uint8) % 3)
    splits = Splits(some, some, some, spec, no_images(spec))
    exported = export(weights_to_bytes(network), settings, splits)  # fails where a label differs
    assert exported.answers.unlike is not None
    require_standard(exported.onnx)
    with pytest.raises(ValueError, match=rf"{name} needs images of at least {side}x{side} pixels, not {side - 1}x"):
        build_network(settings, spec_of(side - 1, 3))


def test_resnet18_through_the_whole_life_of_a_colour_folder(tmp_path, instance):
    write_photos(tmp_path / "data", ("ball", "box", "cross"), 24)
    variables = {"DATASET": "folder", "DATASET_NAME": "shapes", "IMAGE_SIZE": "32"}
    recipe = {"network": "resnet18", "epochs": 4, "batch_size": 16, "learning_rate": 0.003, "precision": "float32"}
    picture = photo(2, np.random.default_rng(9))
    places = {"DATASET_DIR": str(tmp_path / "data"), "STORAGE_ROOT": str(tmp_path / "storage")}
    pipeline = Pipeline(Environment.read(variables | places), instance)
    result = pipeline.run(digit_classifier=recipe, production_digit_classifier={"accuracy_threshold": 0.6})
    deployed = pipeline.store.production().version
    assert "_resnet18_" in deployed
    splits = result.output_for_node("processed_mnist_data")
    manifest, weights = pipeline.store.load(deployed)
    torchs = predict_logits(model_from_bytes(weights, manifest.network, manifest.task), splits.test.images, splits.spec)
    served = Predictor(*pipeline.store.load_onnx(deployed)).predict(splits.test.images)
    assert np.array_equal(torchs.argmax(1).numpy(), served.argmax(1))
    with Service(pipeline.store) as service:
        [prediction] = service.predict(encode(picture)).json()["predictions"]
        assert prediction["class"] == "cross"


@pytest.fixture
def own_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file beside the others, in all but its place."""
    (tmp_path / "my_network.py").write_text(OWN)
    monkeypatch.setattr(networks, "__path__", [*networks.__path__, str(tmp_path)])
    return "my_network"


def test_a_network_of_ones_own_is_a_file(own_network, splits):
    assert own_network in known_networks()
    settings = TrainingSettings(**TINY | {"conv_channels": [32, 64, 128]}, network=own_network)
    result = train(settings, splits)
    assert result.history[-1].validation_accuracy > 0.5
    exported = export(result.weights, settings, splits)
    assert exported.answers.probabilities.shape == (len(splits.validation.labels), splits.spec.classes)
    assert settings.network_label == own_network


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "vgg16"}, "there is no network 'vgg16', but digit_cnn, resnet18"),
        ({"network": "resnet18", "conv_channels": [8, 8, 8]}, "conv_channels has no effect with network='resnet18'"),
        ({"network": "resnet18", "hidden_dropout": 0.5}, "hidden_dropout has no effect"),
        ({"network": "torchvision_models"}, "there is no network"),
    ],
)
def test_a_network_that_is_not_there_or_a_setting_that_it_ignores_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**settings)


def test_a_training_begins_with_the_weights_of_a_file(splits, trained, tmp_path):
    (file := tmp_path / "weights.safetensors").write_bytes(trained.weights)
    later = train(TrainingSettings(**TINY | {"epochs": 1, "initial_weights": str(file)}), splits)
    fresh = train(TrainingSettings(**TINY | {"epochs": 1}), splits)
    assert later.history[0].train_loss < 0.7 * fresh.history[0].train_loss


def test_torchvisions_weights_fit_whatever_the_classes(tmp_path):
    write_photos(tmp_path / "shapes", ("ball", "box"), 8)
    settings = DatasetSettings(dataset="folder", directory=str(tmp_path / "shapes"), image_size=(32, 32))
    dataset = load_folder(settings)
    splits = split(dataset, no_images(dataset.spec), SplitSettings())
    theirs = models.resnet18(weights=None)  # of 1,000 classes
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    recipe = {"network": "resnet18", "epochs": 1, "batch_size": 8, "learning_rate": 1e-9, "weight_decay": 0.0}
    result = train(TrainingSettings(**recipe, initial_weights=str(tmp_path / "resnet18.pth")), splits)
    network = model_from_bytes(result.weights, TrainingSettings(**recipe), dataset.spec)
    assert torch.allclose(network.state_dict()["model.layer1.0.conv1.weight"], theirs.layer1[0].conv1.weight, atol=1e-6)


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_weights_that_cannot_be_begun_with_are_refused_and_nothing_is_executed(splits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "harmful.pth").write_bytes(pickle.dumps(Harmful()))
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 20)
    torch.save({"of": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in (
        ("harmful.pth", "cannot be read"),
        ("broken.safetensors", "cannot be read"),
        ("absent.pth", "cannot be read"),
        ("other.pth", "has no tensor for this network"),
        ("list.pth", "has no tensor for this network"),
    ):
        with pytest.raises(ValueError, match=f"initial_weights: .*{name} {message}"):
            train(TrainingSettings(**TINY, initial_weights=str(tmp_path / name)), splits)
    assert not (tmp_path / "executed").exists()
