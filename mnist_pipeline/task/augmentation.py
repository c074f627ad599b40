"""Random rotation, shift, scaling, shear and mirroring of a whole batch by one affine warp."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_pipeline.task.settings import AugmentationSettings
from mnist_pipeline.task.spec import TaskSpec


def augment(images: Tensor, settings: AugmentationSettings, spec: TaskSpec, generator: torch.Generator) -> Tensor:
    """Warp `images` (N, C, H, W), uint8 or float 0..255, each by itself, to float32 of the same shape and scale.

    Every amount is drawn uniformly from plus or minus its setting. At the edges comes in what photos show there,
    mirrored, and otherwise background (0).
    """
    height, width = images.shape[2:]
    limits = [
        math.radians(settings.rotation_degrees),
        math.radians(settings.shear_degrees),
        settings.scaling_fraction,
        settings.scaling_fraction,
        2 * settings.translation_pixels / width,  # affine_grid counts from -1 to 1 over the image
        2 * settings.translation_pixels / height,
    ]
    images = images.float()
    is_photo = spec.pictures == "photos"
    mirrored = spec.pictures != "handwriting" if settings.mirrored is None else settings.mirrored
    if not any(limits) and not mirrored:
        return images
    # Drawn on the CPU, so that the same seed warps alike on every device.
    draws = (torch.rand(len(images), len(limits), generator=generator) * 2 - 1) * torch.tensor(limits)
    angle, shear, scale_x, scale_y, shift_x, shift_y = draws.to(images.device).unbind(1)  # (N,) each
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
    if mirrored:
        flipped = torch.rand(len(images), generator=generator) < 0.5
        warp[flipped.to(images.device), 0] *= -1  # where the picture is looked at, from right to left
    grid = F.affine_grid(warp, list(images.shape), align_corners=False)  # (N, H, W, 2)
    edges = "reflection" if is_photo else "zeros"
    return F.grid_sample(images, grid, padding_mode=edges, align_corners=False)  # (N, C, H, W)
