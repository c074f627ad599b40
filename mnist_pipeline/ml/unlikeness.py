"""A score of how unlike the training images an image is, from what the network sees in it.

Two scores are added. The energy of the logits, -log(sum(exp)), is high where no class is likely (Liu et al. 2020,
Energy-based Out-of-distribution Detection). The Mahalanobis distance to the nearest class is that of Lee et al. 2018 (A
Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks), here of the mean and the
deviation of each channel, from the first convolutions on: those tell strokes from texture, also where the last layer
is sure. Each is scaled by what it is on the validation images.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_pipeline.ml.data import evenly
from mnist_pipeline.ml.model import channels_first, normalize
from mnist_pipeline.ml.predictor import BATCH_SIZE
from mnist_pipeline.task.dataset import LabelledImages
from mnist_pipeline.task.spec import TaskSpec

REFUSED_SHARE = 0.01
"""The share of the validation images that counts as unlike the training images: the threshold is there. Of fewer than a
hundred it is one of them."""

DISTANCE_WEIGHT = 1.5
"""The weight of the distance beside the energy: with less, another hand's writing is refused more often."""

MOST_CHANNELS = 512
"""The most channels whose means and deviations are looked at; the matrix of the distance has four times its square."""

MOST_IMAGES = 20_000
"""The most training images from which the distance is learned, at equal distances of more."""


class Unlikeness(nn.Module):
    """The score of logits (N, classes) and features (N, D): float32 (N,), above 0 for what is unlike training."""

    def __init__(self, means: np.ndarray, whitening: np.ndarray) -> None:
        """Take the means (classes, D) of the features, and the matrix (D, D) that makes distances comparable."""
        super().__init__()
        centre = means.mean(0)  # numbers are small around it, as single precision wants them
        white = (means - centre) @ whitening
        # As one product and one sum each, which the runtime does in one step.
        self.whitening, self.shift, self.doubled_means, self.squared_means = (
            torch.from_numpy(np.ascontiguousarray(array)).float()
            for array in (whitening.T, -centre @ whitening, -2 * white, (white**2).sum(1))
        )
        self.offset, self.of_energy, self.of_distance = 0.0, 1.0, DISTANCE_WEIGHT

    def calibrate(self, logits: Tensor, features: Tensor | None) -> None:
        """Scale both parts by their spread on validation images, of which REFUSED_SHARE are above 0 then."""
        parts = [part.double() for part in self.parts(logits, features)]
        deviations = [max(part.std(correction=0).item(), 1e-6) for part in parts]
        self.of_energy = 1 / deviations[0]
        self.of_distance = DISTANCE_WEIGHT / deviations[-1]
        self.offset -= torch.quantile(self(logits, features).double(), 1 - REFUSED_SHARE).item()

    def forward(self, logits: Tensor, features: Tensor | None) -> Tensor:
        """Return the score; without features it is the energy alone."""
        energy, *distance = self.parts(logits, features)
        score = energy * self.of_energy + self.offset
        return score + distance[0] * self.of_distance if distance else score

    def parts(self, logits: Tensor, features: Tensor | None) -> list[Tensor]:
        """Return the energy, and the logarithm of the squared distance to the nearest class, each (N,)."""
        energy = -torch.logsumexp(logits, 1)
        if features is None:
            return [energy]
        white = F.linear(features, self.whitening, self.shift)  # (N, D)
        # |a - b|^2 = |a|^2 - 2ab + |b|^2, since the exporter knows no cdist.
        squares = (white**2).sum(1, keepdim=True) + F.linear(white, self.doubled_means, self.squared_means)
        return [energy, squares.amin(1).clamp(min=1e-3).log()]


class Watched:
    """The layers of a network whose maps are looked at while it works.

    They are the batch norm, or convolution where there is none, that is the last one at each size of map, from the
    first on while the channels are few enough.
    """

    def __init__(self, network: nn.Module, spec: TaskSpec) -> None:
        kind = nn.BatchNorm2d if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()) else nn.Conv2d
        worked: list[tuple[nn.Module, torch.Size]] = []
        hooks = [
            module.register_forward_hook(lambda module, _, given: worked.append((module, given.shape)))
            for module in network.modules()
            if isinstance(module, kind)
        ]
        with torch.inference_mode():
            network(torch.zeros(2, spec.image_shape[2], *spec.image_shape[:2]))
        for hook in hooks:
            hook.remove()
        self.modules: list[nn.Module] = []
        shares: list[Tensor] = []
        # A layer that works twice counts as it does the last time.
        last = {shape[2:]: (module, shape) for module, shape in dict(worked).items()}
        for module, (_, channels, height, width) in last.values():
            if sum(map(len, shares)) + channels > MOST_CHANNELS:
                break
            if height * width > 1:
                self.modules.append(module)
                shares.append(torch.full((channels,), 1 / (height * width)))
        # Constants: asked of the maps while the exporter looks, they would be computed for every image.
        self.shares = torch.cat(shares) if shares else None

    @contextmanager
    def maps(self) -> Iterator[dict[nn.Module, Tensor]]:
        """Collect what the layers give, (N, C, H, W) each."""
        seen: dict[nn.Module, Tensor] = {}
        hooks = [
            module.register_forward_hook(lambda module, _, given: seen.update({module: given}))
            for module in self.modules
        ]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    def features(self, seen: Mapping[nn.Module, Tensor]) -> Tensor | None:
        """Return the mean and the deviation of each channel of the maps, (N, D); None if there is no map."""
        if self.shares is None:
            return None
        maps = [seen[module] for module in self.modules]
        means = torch.cat([values.mean((2, 3)) for values in maps], 1)
        # By the norm, which is one pass over a map, where differences from the mean would be three.
        norms = torch.cat([torch.linalg.vector_norm(values, dim=(2, 3)) for values in maps], 1)
        return torch.cat([means, (norms**2 * self.shares - means**2).clamp(min=0).sqrt()], 1)


def fit_unlikeness(
    network: nn.Module, spec: TaskSpec, train: LabelledImages, validation: np.ndarray
) -> tuple[Unlikeness, np.ndarray]:
    """Learn the score from training images, and its threshold from validation images, uint8 (N, *spec.array_shape).

    The network is on the CPU and in evaluation mode. Also returns the scores of the validation images, float32 (N,).
    Equal arguments give an equal score.
    """
    watched = Watched(network, spec)
    chosen = evenly(len(train.labels), MOST_IMAGES)
    _, features = seen_by(network, watched, spec, train.images, chosen)
    unlikeness = _distance(features, train.labels[chosen])
    logits, features = seen_by(network, watched, spec, validation, np.arange(len(validation)))
    with torch.inference_mode():
        unlikeness.calibrate(logits, features)
        return unlikeness, unlikeness(logits, features).numpy()


def seen_by(
    network: nn.Module, watched: Watched, spec: TaskSpec, images: np.ndarray, chosen: np.ndarray
) -> tuple[Tensor, Tensor | None]:
    """Return logits (n, classes) and features (n, D) of the chosen images, the latter None if nothing is watched."""
    logits, features = [], []
    for start in range(0, len(chosen), BATCH_SIZE):
        batch = torch.from_numpy(images[chosen[start : start + BATCH_SIZE]])
        with watched.maps() as maps, torch.inference_mode():
            logits.append(network(normalize(channels_first(batch), spec)))
        if (found := watched.features(maps)) is not None:
            features.append(found)
    return torch.cat(logits), torch.cat(features) if features else None


def _distance(seen: Tensor | None, labels: np.ndarray) -> Unlikeness:
    """Return the score by the means of the classes there are, and the covariance within them (Ledoit and Wolf 2004)."""
    if seen is None:
        return Unlikeness(np.zeros((1, 1)), np.zeros((1, 1)))
    features, present = seen.numpy().astype(np.float64), np.unique(labels)
    means = np.stack([features[labels == label].mean(0) for label in present])
    within = features - means[np.searchsorted(present, labels)]
    deviations = within.std(0)
    deviations = np.maximum(deviations, 0.01 * np.median(deviations) + 1e-9)  # of a channel that is always off
    covariance, _ = ledoit_wolf(within / deviations, assume_centered=True)
    covariance += 1e-6 * np.eye(len(covariance))  # of one image a class, or of a network that sees nothing, it is 0
    return Unlikeness(means, np.linalg.cholesky(np.linalg.inv(covariance)) / deviations[:, None])
