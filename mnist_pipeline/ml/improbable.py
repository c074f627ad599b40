"""Labels of the training data that a trained network finds improbable.

The method is confident learning (Northcutt, Jiang and Chuang 2021, Confident Learning: Estimating Uncertainty in
Dataset Labels, sections 3.1 and 3.2): a label is suspect if a model that was not fitted on it expects another class,
with at least the probability that the images of that class have on average. Training several networks for that would
cost as many trainings; here it is the last layer alone that is fitted again, without a fifth of the images at a time,
to what the one before it sees: as a linear discriminant analysis, which needs no descent. It is far too sure of itself,
and so all of its scores are divided by one temperature.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from mnist_pipeline.files.tensors import scratch
from mnist_pipeline.ml.data import evenly
from mnist_pipeline.ml.export import fit_temperature
from mnist_pipeline.ml.model import channels_first, normalize
from mnist_pipeline.ml.predictor import BATCH_SIZE
from mnist_pipeline.ml.review_items import MOST_OF_A_KIND, ReviewItem
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
"""The range of the temperature of discriminants; 9 to 25 were seen."""


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
    """
    labels = np.concatenate([part.labels for part in parts])
    features = _features(network, spec, [part.images for part in parts])
    probabilities = out_of_fold(features, labels, spec.classes)
    places = [(number, position) for number, part in enumerate(parts) for position in range(len(part.labels))]
    found = []
    for row in suspects(probabilities, labels):
        given, likeliest = int(labels[row]), int(probabilities[row].argmax())
        chances = float(probabilities[row, given]), float(probabilities[row, likeliest])
        part, position = places[row]
        found.append(Improbable(part, position, given, likeliest, *chances))
    kinds = Counter(label.kind for label in found)
    return sorted(found, key=lambda label: (-kinds[label.kind], label.kind, label.probability_given))


def improbable_items(
    found: Sequence[Improbable], parts: Sequence[LabelledImages], spec: TaskSpec, model: str
) -> Iterator[ReviewItem]:
    """Yield what is to be looked at, in the same order, at most MOST_OF_A_KIND of each kind."""
    kinds: Counter[tuple[int, int]] = Counter()
    for label in found:
        kinds[label.kind] += 1
        if kinds[label.kind] <= MOST_OF_A_KIND:
            image, chance = parts[label.part].images[label.position], label.probability_likeliest
            yield ReviewItem.of(image, "improbable", spec, model, label.likeliest, chance, label.given)


def suspects(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the positions of labels (N,) that probabilities (N, classes) contradict, each out of fold.

    Counted is what stands off the diagonal of the confident joint: the class whose threshold is reached most surely is
    not the one that was given, where the threshold of a class is the mean probability of it among its own images.
    """
    own = [probabilities[labels == label, label] for label in range(probabilities.shape[1])]
    thresholds = np.array([values.mean() if len(values) else np.inf for values in own])
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    return np.flatnonzero((reached.max(1) >= 0) & (reached.argmax(1) != labels))


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
        fitted, asked = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        known = np.flatnonzero(np.bincount(labels[fitted], minlength=classes) >= LEAST_FITTED)
        fitted, asked = (rows[np.isin(labels[rows], known)] for rows in (fitted, asked))
        if len(known) < 2 or not len(asked):
            continue
        fitted = fitted[evenly(len(fitted), MOST_FITTED)]
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


def _features(network: nn.Module, spec: TaskSpec, images: Sequence[np.ndarray]) -> np.ndarray:
    """Return what the last fully connected layer is given, float32 (N, D); where there is none, the logits."""
    device = next(network.parameters()).device
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    narrow = linear[-1:] if linear and linear[-1].in_features <= MOST_FEATURES else []
    width = narrow[0].in_features if narrow else spec.classes
    # In a file, where it is large: it may be more than the images are.
    features = scratch((sum(map(len, images)), width * np.dtype(np.float32).itemsize)).view(np.float32)
    seen: list[torch.Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for layer in narrow]
    begin = 0
    try:
        for part in images:
            for start in range(0, len(part), BATCH_SIZE):
                batch = torch.from_numpy(part[start : start + BATCH_SIZE]).to(device)
                with torch.inference_mode():
                    logits = network(normalize(channels_first(batch), spec))
                found = seen.pop() if narrow else logits
                features[begin : begin + len(batch)] = found.reshape(len(batch), width).float().cpu().numpy()
                begin += len(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return features
