"""Models of torchvision with the head of a task."""

import torch
from torch import Tensor, nn
from torchvision import models

from mnist_pipeline.task.networks import TORCHVISION
from mnist_pipeline.task.settings import NetworkSettings
from mnist_pipeline.task.spec import TaskSpec

COLOURS = 3
"""The channels that torchvision's models take."""


class ForAnyChannels(nn.Module):
    """One of torchvision's models, which sees grey images in three equal channels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (N, classes) of inputs (N, 1 or 3, H, W)."""
        return self.model(inputs.expand(-1, COLOURS, -1, -1))


def build(settings: NetworkSettings, spec: TaskSpec) -> nn.Module:
    """Return the model of that name with random weights. Raises ValueError if the images are too small for it."""
    height, width, _ = spec.image_shape
    least = TORCHVISION[settings.network]
    if min(height, width) < least:
        raise ValueError(f"{settings.network} needs images of at least {least}x{least} pixels, not {height}x{width}")
    model = models.get_model(settings.network, weights=None, num_classes=spec.classes)
    return ForAnyChannels(model).to(memory_format=torch.channels_last)
