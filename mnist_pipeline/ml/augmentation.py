"""Random rotation, shift, scaling and shear of a whole batch by one affine warp."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_pipeline.ml.settings import SIDE, TrainingSettings


def augment(images: Tensor, settings: TrainingSettings, generator: torch.Generator) -> Tensor:
    """`images` (N, 28, 28), uint8 or float 0..255 -> float32 of the same shape and scale, each warped by itself.

    Every amount is drawn uniformly from plus or minus its setting; background (0) comes in at the edges.
    """
    limits = [
        math.radians(settings.rotation_degrees),
        math.radians(settings.shear_degrees),
        settings.scaling_fraction,
        settings.scaling_fraction,
        2 * settings.translation_pixels / SIDE,  # affine_grid counts from -1 to 1 over the image
        2 * settings.translation_pixels / SIDE,
    ]
    images = images.float()
    if not any(limits):
        return images
    # Drawn on the CPU, so that the same seed warps alike on every device.
    draws = (torch.rand(len(images), len(limits), generator=generator) * 2 - 1) * torch.tensor(limits)
    angle, shear, scale_x, scale_y, shift_x, shift_y = draws.to(images.device).unbind(1)
    cos, sin = angle.cos(), angle.sin()
    # Rotation after shear after scaling; it maps output to input positions, as grid_sample wants.
    scale_x, scale_y, slope = 1 + scale_x, 1 + scale_y, shear.tan()
    warp = torch.stack(
        [
            torch.stack([cos * scale_x, (cos * slope - sin) * scale_y, shift_x], dim=1),
            torch.stack([sin * scale_x, (sin * slope + cos) * scale_y, shift_y], dim=1),
        ],
        dim=1,
    )  # (N, 2, 3)
    grid = F.affine_grid(warp, [len(images), 1, SIDE, SIDE], align_corners=False)
    return F.grid_sample(images.unsqueeze(1), grid, align_corners=False).squeeze(1)
