"""Settings of the network refuse what cannot be built, with the field and what is allowed."""

import pytest
from pydantic import ValidationError

from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.task.settings import AugmentationSettings, NetworkSettings

REFUSED = [
    ({"conv_channels": [], "conv_depths": []}, "conv_channels", r"1\.\.3 numbers"),
    ({"conv_channels": [8] * 4, "conv_depths": [1] * 4}, "conv_channels", r"1\.\.3 numbers"),
    ({"conv_channels": [8, 8]}, "conv_channels", "equally long"),
    ({"conv_depths": [1, 1]}, "conv_depths", "equally long"),
    ({"conv_depths": [1, 0, 1]}, "conv_depths", r"1\.\.12"),
    ({"conv_depths": [1, 1, 10**9]}, "conv_depths", r"1\.\.12"),
    ({"conv_channels": [8, 0, 8]}, "conv_channels", r"1\.\.4096"),
    ({"hidden_units": [5000]}, "hidden_units", r"1\.\.4096"),
    ({"rotation_degrees": 181}, "rotation_degrees", "less than or equal to 180"),
    ({"translation_pixels": -1}, "translation_pixels", "greater than or equal to 0"),
]


@pytest.mark.parametrize(("values", "field", "allowed"), REFUSED, ids=lambda value: str(value)[:60])
def test_refused(values, field, allowed):
    with pytest.raises(ValidationError, match=allowed) as error:
        TrainingSettings(**values)
    assert field in str(error.value)


@pytest.mark.parametrize("settings", [NetworkSettings, AugmentationSettings])
def test_every_field_is_described_and_nothing_changes_later(settings):
    assert all(field.description for field in settings.model_fields.values())
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings(), next(iter(settings.model_fields)), None)


def test_the_label_tells_the_network():
    assert NetworkSettings().network_label == "c32-64-128"
    assert NetworkSettings(conv_depths=[1, 3, 1]).network_label == "c32-64x3-128"
