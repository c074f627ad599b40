"""The images that people are asked to look at, and why: doubtful answers, and doubtful labels."""

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, get_args

import numpy as np
from pydantic import BaseModel, Field

from mnist_pipeline.task.dataset import LabelledImages
from mnist_pipeline.task.spec import TaskSpec

if TYPE_CHECKING:  # the queue itself needs no runtime for models
    from mnist_pipeline.ml.predictor import Answers, Predictor

IMAGE_ID = "^[0-9a-f]{32}$"
"""The form of an image's id."""

MAX_NUMBERS = 256 * 256 * 3
"""The numbers of the largest image that is asked about, which is about a MiB as text: the page sends them back."""

MOST_OF_A_KIND = 20
"""Labels of one kind (this class called that one): so many that contradict the model train in an hour from one source,
and so many that a candidate finds improbable are asked about at a time."""

Reason = Literal["held", "contradiction", "improbable", "unlike", "unsure"]
"""Why an image is to be looked at: a label that trains only when it is confirmed; one that contradicts the deployed
model; one of the training data that a candidate finds improbable; a picture unlike the training data; an answer below
the threshold. They are looked at in this order."""


class ReviewItem(BaseModel):
    """An image to be looked at, and why."""

    id: str = Field(description="Of the image, as in corrections.")
    image: list[list[Any]] = Field(description="Rows of values 0..255.")
    label: int = Field(description="The answer of the model.")
    class_name: str | None = Field(None, description="The name of that class, which later models may count otherwise.")
    confidence: float = Field(description="0..1.")
    model: str
    reason: Reason = Field("unsure", description="Why it is to be looked at.")
    given: int | None = Field(None, description="The label that somebody gave; null: nobody did.")
    given_name: str | None = Field(None, description="The name of that class.")
    source: str | None = Field(None, description="A digest of the address that the label came from.")

    @classmethod
    def of(
        cls,
        image: np.ndarray,
        reason: Reason,
        spec: TaskSpec,
        model: str,
        label: int,
        confidence: float,
        given: int | None = None,
        source: str | None = None,
    ) -> Self:
        """Return the item of a uint8 image, with the names of its classes."""
        return cls(
            id=image_id(image),
            image=image.tolist(),
            label=label,
            class_name=spec.class_names[label],
            confidence=confidence,
            model=model,
            reason=reason,
            given=given,
            given_name=None if given is None else spec.class_names[given],
            source=source,
        )

    @property
    def order(self) -> tuple[int, float]:
        """The place in the queue: labels that the model contradicts most surely first, and answers least sure first."""
        return get_args(Reason).index(self.reason), self.confidence if self.given is None else -self.confidence


def image_id(image: np.ndarray) -> str:
    """Return the SHA-256 (hex, its first half) of the pixels of an image."""
    return hashlib.sha256(image.tobytes()).hexdigest()[:32]


def contradictions(predictor: "Predictor", labelled: LabelledImages, source: str | None = None) -> list[ReviewItem]:
    """Return the labels of uint8 images (N, *spec.array_shape) that a model contradicts, most surely first."""
    if not len(labelled.labels):
        return []
    probabilities = predictor.predict(labelled.images)
    likeliest, confidences = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(likeliest != labelled.labels)
    return [
        ReviewItem.of(
            labelled.images[row],
            "contradiction",
            predictor.spec,
            predictor.version,
            int(likeliest[row]),
            float(confidences[row]),
            int(labelled.labels[row]),
            source,
        )
        for row in wrong[np.argsort(-confidences[wrong], kind="stable")]
    ]


class _Doubt(NamedTuple):
    score: float
    image: np.ndarray
    label: int
    confidence: float


class Doubtful:
    """The images that a model is least sure of, and those most unlike its training images, of a batch of any length."""

    def __init__(self, predictor: "Predictor", threshold: float, most: int) -> None:
        """Keep `most` images of each kind; `threshold` is the confidence from which an answer needs no review."""
        self._predictor, self._threshold, self._most = predictor, threshold, most
        self._kept: dict[Reason, list[_Doubt]] = {"unlike": [], "unsure": []}

    def add(self, images: np.ndarray, answers: "Answers") -> None:
        """Look at some more uint8 images (N, *spec.array_shape) and their answers."""
        labels, confidences = answers.probabilities.argmax(1), answers.probabilities.max(1)
        strange = np.full(len(labels), -np.inf) if answers.unlikeness is None else answers.unlikeness
        unsure = np.where(strange > 0, -np.inf, self._threshold - confidences)
        scored: dict[Reason, np.ndarray] = {"unlike": strange, "unsure": unsure}
        for reason, scores in scored.items():
            rows = np.argsort(-scores, kind="stable")[: self._most]
            found = [
                _Doubt(float(scores[row]), images[row].copy(), int(labels[row]), float(confidences[row]))
                for row in rows[scores[rows] > 0]
            ]
            both = sorted(self._kept[reason] + found, key=lambda doubt: -doubt.score)
            self._kept[reason] = both[: self._most]

    def items(self) -> Iterator[ReviewItem]:
        """Yield what is to be looked at."""
        for reason, kept in self._kept.items():
            for doubt in kept:
                spec, model = self._predictor.spec, self._predictor.version
                yield ReviewItem.of(doubt.image, reason, spec, model, doubt.label, doubt.confidence)
