"""DigitCNN: a small network for small images, which grows with them."""

import math

import torch
from torch import Tensor, nn

from mnist_pipeline.task.settings import NetworkSettings
from mnist_pipeline.task.spec import TaskSpec


def build(settings: NetworkSettings, spec: TaskSpec) -> nn.Module:
    """Return a network with random weights: inputs float32 (N, C, H, W) -> logits (N, classes).

    Raises ValueError if the images are too small for it.
    """
    return DigitCNN(settings, spec)


class DigitCNN(nn.Module):
    """Convolution blocks and a small fully connected head: inputs (N, C, H, W) -> logits (N, classes).

    No padding: the border of an MNIST image is empty, and most of the work is saved. Of 28x28 pixels the feature maps
    are by default (N, 32, 12, 12), (N, 64, 5, 5) and (N, 128, 3, 3).
    """

    def __init__(self, settings: NetworkSettings, spec: TaskSpec) -> None:
        super().__init__()
        self.features = nn.Sequential()
        height, width, channels = spec.image_shape
        convolutions = settings.convolutions_for(height, width)
        for convolution in convolutions:
            self.features.append(_convolution_unit(channels, *convolution, dropout=settings.conv_dropout))
            channels = convolution.channels
        head: list[nn.Module] = [nn.Flatten()]
        features = channels * math.prod(settings.features_size(convolutions, height, width))
        for units in settings.hidden_units:
            head += [nn.Linear(features, units), nn.ReLU(), nn.Dropout(settings.hidden_dropout)]
            features = units
        self.head = nn.Sequential(*head, nn.Linear(features, spec.classes))
        self.to(memory_format=torch.channels_last)  # convolutions are faster so, on a CPU and in bfloat16 on a GPU

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (N, classes) of inputs (N, C, H, W)."""
        return self.head(self.features(inputs))


def _convolution_unit(channels_in: int, channels: int, kernel_size: int, pooled: bool, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, kernel_size, bias=False),  # batch norm has the bias
        nn.MaxPool2d(2) if pooled else nn.Identity(),  # before batch norm and ReLU, which then have a quarter to do
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Dropout2d(dropout),
    )
