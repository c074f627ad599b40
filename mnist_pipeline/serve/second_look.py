"""Labels that people send, looked at before they train: those that contradict the deployed model are marked or wait."""

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, Field

from mnist_pipeline.ml.review import ReviewQueue
from mnist_pipeline.ml.review_items import contradictions
from mnist_pipeline.serve.corrections import Correction, Corrections
from mnist_pipeline.serve.decoding import read_array
from mnist_pipeline.serve.deployment import Served
from mnist_pipeline.serve.errors import ServiceError
from mnist_pipeline.task.dataset import LabelledImages
from mnist_pipeline.task.spec import TaskSpec

log = logging.getLogger(__name__)


class Settled(BaseModel):
    """The outcome of a look at labels that waited."""

    settled: int = Field(description="Images whose labels wait no more; of the others none waited.")
    waiting: int = Field(description="Corrections that no training has seen yet.")


class Feedback(NamedTuple):
    """The two places of the loop back to training, and the way between them."""

    corrections: Corrections
    queue: ReviewQueue
    second_opinion: bool
    """Every label that contradicts the deployed model waits until somebody confirms it."""

    def correct(
        self, served: Served, image: np.ndarray, label: int, confirmed: bool, source: str
    ) -> tuple[Correction, bool]:
        """Store the label of a uint8 image, or hold it back; also return whether that was new.

        A confirmed label is stored in any case. Raises ServiceError as `Corrections` does, and OSError.
        """
        settled = confirmed

        def admitted(prepared: np.ndarray) -> bool:
            nonlocal settled
            self.corrections.require_pace()
            told = LabelledImages(prepared[np.newaxis], np.array([label], np.uint8))
            found = contradictions(served.predictor, told, source)
            settled = settled or not found
            return settled or self.queue.admit(found[0], self.second_opinion)

        correction, new = self.corrections.add(image, label, served.predictor.spec, admitted)
        if settled:
            _quietly(self.queue.label, correction.id)
        return correction, new

    def take_back(self, digest: str, spec: TaskSpec) -> None:
        """Undo a correction, or forget a label that waits. Raises ServiceError if there is neither."""
        if self.corrections.take_back(digest, spec):
            _quietly(self.queue.take_back, digest)
        elif not self.queue.discard_held(digest):
            raise ServiceError(404, "unknown_correction", "there is no correction of this id")

    def settle(self, served: Served, digests: list[str], confirm: bool) -> Settled:
        """Store the labels of those of these images that wait, or forget them. Raises ServiceError and OSError."""
        spec, items = served.predictor.spec, self.queue.held(digests)
        if confirm and (unknown := {str(item.given_name) for item in items} - set(spec.class_names)):
            raise ServiceError(409, "other_classes", f"{', '.join(sorted(unknown))} is no class now: see /model")
        for item in items:
            if confirm:
                label = spec.class_names.index(str(item.given_name))
                self.corrections.add(read_array(item.image, spec), label, spec, lambda _: True)
                self.queue.label(item.id)
            else:
                self.queue.discard_held(item.id)
        return Settled(settled=len(items), waiting=self.corrections.waiting())


def _quietly(change: Callable[[str], None], digest: str) -> None:
    """Change the queue; where that cannot be, the correction is stored all the same."""
    try:
        change(digest)
    except OSError as error:
        log.warning("what is to be reviewed cannot be stored now: %s", error)
