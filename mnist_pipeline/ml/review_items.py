"""The images that people are asked to look at, and why: doubtful answers, and doubtful labels."""

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

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

Reason = Literal["held", "contradiction", "improbable", "unlike", "unsure"]
"""Why an image is to be looked at: a label that trains only when it is confirmed; one that contradicts the deployed
model; one of the training data that a candidate finds improbable; a picture unlike the training data; an answer below
the threshold. They are looked at in this order."""


class ReviewItem(BaseModel):
    """An image to be looked at, and why."""

    id: str = Field(pattern=IMAGE_ID, description="Of the image, as in corrections.")
    image: list[list[Any]] = Field(description="Rows of values 0..255.")
    label: int = Field(description="The answer of the model.")
    class_name: str | None = Field(None, description="The name of that class, which later models may count otherwise.")
    confidence: float = Field(description="0..1.")
    model: str
    reason: Reason = Field("unsure", description="Why it is to be looked at.")
    given: int | None = Field(None, description="The label that somebody gave; null: nobody did.")
    given_name: str | None = Field(None, description="The name of that class.")
    source: str | None = Field(None, description="A digest of the address that the label came from.")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the image; () where its rows differ."""
        try:
            return np.shape(self.image)
        except ValueError:
            return ()

    @property
    def order(self) -> tuple[int, float]:
        """The place in the queue: labels that the model contradicts most surely first, and answers least sure first."""
        return get_args(Reason).index(self.reason), self.confidence if self.given is None else -self.confidence


def image_id(image: np.ndarray) -> str:
    """Return the SHA-256 (hex, its first half) of the pixels of an image."""
    return hashlib.sha256(image.tobytes()).hexdigest()[:32]


class Doubt(NamedTuple):
    """An answer of a model that people should look at."""

    image: np.ndarray
    """uint8, of the shape of the task."""
    reason: Reason
    label: int
    confidence: float
    """0..1."""

    def item(self, spec: TaskSpec, model: str, **given: Any) -> ReviewItem:
        """Return it as an item, with what was given: a label, the name of its class, its source."""
        return ReviewItem(
            id=image_id(self.image),
            image=self.image.tolist(),
            label=self.label,
            class_name=spec.class_names[self.label],
            confidence=self.confidence,
            model=model,
            reason=self.reason,
            **given,
        )


def contradictions(
    predictor: "Predictor", labelled: LabelledImages, spec: TaskSpec, source: str | None = None
) -> tuple[int, Iterator[ReviewItem]]:
    """Return how many labels of uint8 images (N, *spec.array_shape) a model contradicts, and these, the surest first.

    `spec` has the classes of the labels. They are compared by their names; of classes that the model does not know it
    cannot say anything.
    """
    if not len(labelled.labels):
        return 0, iter(())
    probabilities = predictor.predict(labelled.images)
    likeliest, confidences = probabilities.argmax(1), probabilities.max(1)
    names = np.array(spec.class_names)[labelled.labels]
    differs = names != np.array(predictor.spec.class_names)[likeliest]
    wrong = np.flatnonzero(differs & np.isin(names, predictor.spec.class_names))

    def items() -> Iterator[ReviewItem]:
        for row in wrong[np.argsort(-confidences[wrong], kind="stable")]:
            doubt = Doubt(labelled.images[row], "contradiction", int(likeliest[row]), float(confidences[row]))
            given = {"given": int(labelled.labels[row]), "given_name": str(names[row]), "source": source}
            yield doubt.item(predictor.spec, predictor.version, **given)

    return len(wrong), items()


class Doubtful:
    """The images that a model is least sure of, and those most unlike its training images, of a batch of any length."""

    def __init__(self, threshold: float, most: int) -> None:
        """Keep `most` images of each kind; `threshold` is the confidence from which an answer needs no review."""
        self._threshold, self._most = threshold, most
        self._kept: dict[Reason, list[tuple[float, Doubt]]] = {"unlike": [], "unsure": []}

    def add(self, images: np.ndarray, answers: "Answers") -> None:
        """Look at some more uint8 images (N, *spec.array_shape) and their answers. An image counts once."""
        labels, confidences = answers.probabilities.argmax(1), answers.probabilities.max(1)
        unlikeness = np.full(len(labels), -np.inf) if answers.unlikeness is None else answers.unlikeness
        unsure = np.where(unlikeness > 0, -np.inf, self._threshold - confidences)
        scored: dict[Reason, np.ndarray] = {"unlike": unlikeness, "unsure": unsure}
        for reason, scores in scored.items():
            kept = self._kept[reason]
            known = {doubt.image.tobytes() for _, doubt in kept}
            for row in np.argsort(-scores, kind="stable"):
                full = len(kept) >= self._most
                if scores[row] <= (kept[-1][0] if full and kept else 0) or not self._most:
                    break
                if (content := images[row].tobytes()) not in known:
                    known.add(content)
                    doubt = Doubt(images[row].copy(), reason, int(labels[row]), float(confidences[row]))
                    kept.append((float(scores[row]), doubt))
                    kept.sort(key=lambda found: -found[0])
                    del kept[self._most :]

    def empty(self) -> "Doubtful":
        """Return another one that keeps the same, and has seen nothing."""
        return Doubtful(self._threshold, self._most)

    def to_bytes(self) -> bytes:
        """Return what is kept, as a safetensors file; without images it has no arrays."""
        from safetensors.numpy import save

        arrays: dict[str, np.ndarray] = {}
        for reason, kept in self._kept.items():
            if kept:
                arrays |= {
                    f"{reason}.images": np.stack([doubt.image for _, doubt in kept]),
                    f"{reason}.scores": np.array([score for score, _ in kept], np.float64),
                    f"{reason}.labels": np.array([doubt.label for _, doubt in kept], np.int64),
                    f"{reason}.confidences": np.array([doubt.confidence for _, doubt in kept], np.float64),
                }
        return save(arrays)

    def merge(self, content: bytes) -> None:
        """Keep the most doubtful of what is kept and of what another one kept, as `to_bytes` gave it."""
        from safetensors.numpy import load

        arrays = load(content)
        for reason, kept in self._kept.items():
            known = {doubt.image.tobytes() for _, doubt in kept}
            for row, image in enumerate(arrays.get(f"{reason}.images", ())):
                if image.tobytes() not in known:
                    values = (arrays[f"{reason}.{name}"][row] for name in ("scores", "labels", "confidences"))
                    score, label, confidence = values
                    kept.append((float(score), Doubt(image, reason, int(label), float(confidence))))
            kept.sort(key=lambda found: -found[0])
            del kept[self._most :]

    def doubts(self) -> list[Doubt]:
        """Return those that are kept, of each kind the most doubtful first."""
        return [doubt for kept in self._kept.values() for _, doubt in kept]
