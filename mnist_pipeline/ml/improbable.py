"""Labels of the training data that a trained network finds improbable.

The method is confident learning (Northcutt, Jiang and Chuang 2021, Confident Learning: Estimating Uncertainty in
Dataset Labels, sections 3.1 and 3.2): a label is suspect if a model that was not fitted on it expects another class,
with at least the probability that the images of that class have on average. Training several networks for that would
cost as many trainings; here it is the last layer alone that is fitted again, without a fifth of the images at a time,
to what the one before it sees: as a linear discriminant analysis, which needs no descent. It is far too sure of itself,
and so all of its scores are divided by one temperature. The layers before were fitted on all labels, so that what a
network has learned by heart looks probable: a mark that goes with a wrong label is not found.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from mnist_pipeline.files.tensors import scratch
from mnist_pipeline.ml.data import evenly
from mnist_pipeline.ml.errors import ModelError
from mnist_pipeline.ml.export import fit_temperature
from mnist_pipeline.ml.model import channels_first, normalize
from mnist_pipeline.ml.predictor import BATCH_SIZE
from mnist_pipeline.ml.review_items import Doubt, ReviewItem
from mnist_pipeline.task.dataset import LabelledImages
from mnist_pipeline.task.spec import TaskSpec

FOLDS = 5
LEAST_FITTED = 2
"""The fewest images of a class from which its place is learned: of one there is no spread."""

MOST_FITTED = 20_000
"""The most images that a discriminant is fitted on, at equal distances of more."""

MOST_FEATURES = 2048
"""The widest layer that is looked at; of a wider one, the logits are."""


TEMPERATURES = (1.0, 1000.0)
"""The range of the temperature of discriminants; 9 to 25 were seen on handwriting."""


class Improbable(NamedTuple):
    """A label that the network finds improbable."""

    part: int
    """The data set that the image is in, by its place in the sequence that was asked about."""
    position: int
    """The place of the image in it."""
    given: int
    likeliest: int
    probability_given: float
    """0..1, out of fold."""
    probability_likeliest: float

    @property
    def kind(self) -> tuple[int, int]:
        """The label that was given, and the one that is likeliest."""
        return self.given, self.likeliest


def improbable_labels(network: nn.Module, spec: TaskSpec, parts: Sequence[LabelledImages]) -> list[Improbable]:
    """Return the labels of uint8 images (N, *spec.array_shape) that a network finds improbable.

    The commonest kind comes first (this class called that one), of each the least probable: what somebody got wrong in
    the same way many times does more harm than what is wrong once, and looks more probable for it.
    The network is in evaluation mode, on any device. Where there are too few images to tell, nothing is improbable.
    Raises ModelError if it gives features that are not finite.
    """
    labels = np.concatenate([part.labels for part in parts])
    features = _features(network, spec, [part.images for part in parts])
    probabilities = out_of_fold(features, labels, spec.classes)
    begins = np.cumsum([0, *(len(part.labels) for part in parts)])
    found = []
    for row, likeliest in zip(*suspects(probabilities, labels), strict=True):
        part = int(np.searchsorted(begins, row, side="right")) - 1
        chances = float(probabilities[row, labels[row]]), float(probabilities[row, likeliest])
        found.append(Improbable(part, int(row - begins[part]), int(labels[row]), int(likeliest), *chances))
    kinds = Counter(label.kind for label in found)
    return sorted(found, key=lambda label: (-kinds[label.kind], label.kind, label.probability_given))


def improbable_items(
    found: Sequence[Improbable], parts: Sequence[LabelledImages], spec: TaskSpec, model: str
) -> Iterator[ReviewItem]:
    """Yield what is to be looked at, in the same order."""
    for label in found:
        image = parts[label.part].images[label.position]
        doubt = Doubt(image, "improbable", label.likeliest, label.probability_likeliest)
        yield doubt.item(spec, model, given=label.given, given_name=spec.class_names[label.given])


def suspects(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of labels (N,) that are contradicted, and the labels that are expected there.

    The probabilities (N, classes) are out of fold.
    Counted is what stands off the diagonal of the confident joint: the most probable class of those whose threshold is
    reached is not the one that was given, where the threshold of a class is the mean probability of it among its own
    images. A label that is as probable all the same does not count.
    """
    own = [probabilities[labels == label, label] for label in range(probabilities.shape[1])]
    thresholds = np.array([values.mean() if len(values) else np.inf for values in own])
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    likeliest = reached.argmax(1)
    found = reached.max(1) > probabilities[np.arange(len(labels)), labels]
    return np.flatnonzero(found), likeliest[found]


def out_of_fold(features: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the probabilities of the classes, float32 (N, classes), each by a discriminant of the other folds.

    `features` are float32 (N, D). Each class is dealt out to the folds in turn. A label of a class that is too rare
    gets the probability 1: nothing can be said against it.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    scores = np.full((len(labels), classes), -np.inf, np.float32)
    scores[np.arange(len(labels)), labels] = 0
    order = np.argsort(labels, kind="stable")
    folds = np.empty(len(labels), int)
    folds[order] = (np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])) % FOLDS
    for fold in range(FOLDS):
        fitted, asked = _at_most(MOST_FITTED, np.flatnonzero(folds != fold), labels), np.flatnonzero(folds == fold)
        known = np.flatnonzero(np.bincount(labels[fitted], minlength=classes) >= LEAST_FITTED)
        fitted, asked = (rows[np.isin(labels[rows], known)] for rows in (fitted, asked))
        if len(known) < 2 or not len(asked):
            continue
        discriminant = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        discriminant.fit(features[fitted], labels[fitted])
        for start in range(0, len(asked), MOST_FITTED):
            rows = asked[start : start + MOST_FITTED]
            found = discriminant.decision_function(features[rows])
            # Of two classes it gives one number, which is for the second.
            found = np.stack([np.zeros_like(found), found], 1) if found.ndim == 1 else found
            scores[np.ix_(rows, discriminant.classes_)] = found
    if not len(labels):
        return scores
    logits = torch.from_numpy(scores)
    return (logits / fit_temperature(logits, labels, TEMPERATURES)).softmax(1).numpy()


def _at_most(most: int, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return about as many of the rows, of each class its share, at equal distances."""
    if len(rows) <= most:
        return rows
    of_class = [rows[labels[rows] == label] for label in np.unique(labels[rows])]
    counts = [max(most * len(mine) // len(rows), LEAST_FITTED) for mine in of_class]
    return np.concatenate([mine[evenly(len(mine), count)] for mine, count in zip(of_class, counts, strict=True)])


def _features(network: nn.Module, spec: TaskSpec, images: Sequence[np.ndarray]) -> np.ndarray:
    """Return what the last fully connected layer is given, float32 (N, D), or else the logits."""
    device = next(network.parameters()).device
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    seen: list[torch.Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for layer in linear[-1:]]

    def look(batch: np.ndarray) -> torch.Tensor:
        seen.clear()
        with torch.inference_mode():
            logits = network(normalize(channels_first(torch.from_numpy(batch).to(device)), spec))
        # A layer that is used otherwise than once for each image tells nothing about it.
        fits = len(seen) == 1 and seen[0].dim() == 2 and len(seen[0]) == len(batch)
        return seen[0] if fits and seen[0].shape[1] <= MOST_FEATURES else logits

    try:
        width = look(np.zeros((2, *spec.array_shape), np.uint8)).shape[1]
        # In a file, where it is large: it may be more than the images are.
        features = scratch((sum(map(len, images)), width * np.dtype(np.float32).itemsize)).view(np.float32)
        begin = 0
        for part in images:
            for start in range(0, len(part), BATCH_SIZE):
                found = look(part[start : start + BATCH_SIZE]).float().cpu().numpy()
                features[begin : begin + len(found)] = found
                begin += len(found)
    finally:
        for hook in hooks:
            hook.remove()
    if not np.isfinite(features).all():
        raise ModelError("the network gives features that are not finite")
    return features
