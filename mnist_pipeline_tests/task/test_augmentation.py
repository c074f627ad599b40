"""Each amount of the augmentation, by what it does to a dot and to a bar."""

from typing import Any

import pytest
import torch

from mnist_pipeline.task.augmentation import augment
from mnist_pipeline.task.settings import AugmentationSettings
from mnist_pipeline_tests.task.examples import SPEC


def test_augmentation_warps_by_the_amounts_it_was_given():
    dot = torch.zeros(200, 1, 28, 28)
    dot[..., 13:15, 13:15] = 255
    amounts = ("rotation_degrees", "scaling_fraction", "shear_degrees", "translation_pixels")
    none: dict[str, Any] = {**dict.fromkeys(amounts, 0.0), "mirrored": False}
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(augment(dot, AugmentationSettings(**none), SPEC, generator), dot)
    shifted = augment(dot, AugmentationSettings(**{**none, "translation_pixels": 3.0}), SPEC, generator)
    rows = (shifted.sum(3) * torch.arange(28.0)).sum(2) / shifted.sum((2, 3))
    assert 2.5 < (rows - 13.5).abs().max() <= 3.01
    bar = torch.zeros(200, 1, 28, 28)
    bar[..., 4:24, 13:15] = 255
    turned = augment(bar, AugmentationSettings(**{**none, "rotation_degrees": 90.0}), SPEC, generator)
    assert turned.sum((2, 3)).mean() == pytest.approx(bar.sum((2, 3)).mean().item(), rel=0.05)
    assert 10 < (turned.amax(2) > 100).sum(2).max() <= 24
    grown = augment(bar, AugmentationSettings(**{**none, "scaling_fraction": 0.5}), SPEC, generator)
    heights = (grown.amax(3) > 100).sum(2)
    assert heights.min() < 15
    assert heights.max() == 28


def test_colour_images_are_warped_alike_in_all_channels():
    images = torch.rand(3, 1, 32, 24) * 255
    colour = augment(images.expand(3, 3, 32, 24), AugmentationSettings(), SPEC, torch.Generator().manual_seed(0))
    grey = augment(images, AugmentationSettings(), SPEC, torch.Generator().manual_seed(0))
    assert colour.shape == (3, 3, 32, 24)
    assert all(torch.equal(colour[:, channel], grey[:, 0]) for channel in range(3))


@pytest.mark.parametrize(
    ("pictures", "mirrored", "expected"),
    [
        ("handwriting", None, 0),
        ("cutouts", None, 0.5),
        ("photos", None, 0.5),
        ("photos", False, 0),
        ("handwriting", True, 0.5),
    ],
)
def test_photos_and_cutouts_are_mirrored_and_handwriting_is_not_unless_it_is_asked_for(pictures, mirrored, expected):
    images = torch.zeros(400, 1, 28, 28)
    images[..., 4] = 255  # a stroke on the left
    none = {"rotation_degrees": 0.0, "scaling_fraction": 0.0, "shear_degrees": 0.0, "translation_pixels": 0.0}
    settings, spec = AugmentationSettings(**none, mirrored=mirrored), SPEC.model_copy(update={"pictures": pictures})
    varied = augment(images, settings, spec, torch.Generator().manual_seed(0))
    on_the_right = (varied[:, 0, 0].argmax(1) == 23).float().mean().item()
    assert on_the_right == pytest.approx(expected, abs=0.1)
    assert bool(on_the_right) == bool(expected)


def test_what_comes_in_at_the_edges_of_a_photo_is_no_background():
    images, settings = torch.full((50, 1, 28, 28), 200.0), AugmentationSettings(translation_pixels=8.0)
    for pictures, least in (("photos", 199), ("handwriting", 0)):
        spec = SPEC.model_copy(update={"pictures": pictures})
        varied = augment(images, settings, spec, torch.Generator().manual_seed(0))
        assert varied.min().item() == pytest.approx(least, abs=1)
