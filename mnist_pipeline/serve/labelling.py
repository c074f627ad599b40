"""Labels that people send, looked at before they train: those that contradict the deployed model are marked or wait."""

import logging
from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import BaseModel, Field

from mnist_pipeline.ml.review import ReviewQueue, TooManyWait
from mnist_pipeline.ml.review_items import IMAGE_ID, MAX_NUMBERS, contradictions, image_id
from mnist_pipeline.serve.corrections import Correction, Corrections
from mnist_pipeline.serve.decoding import read_array
from mnist_pipeline.serve.deployment import Served
from mnist_pipeline.serve.errors import ServiceError, too_large
from mnist_pipeline.task.dataset import LabelledImages
from mnist_pipeline.task.spec import TaskSpec

log = logging.getLogger(__name__)

HELD_WAIT_SECONDS = 3600
MOST_IDS = 1000


class HeldGroup(BaseModel, extra="forbid", strict=True):
    """Labels of one kind and source that wait, and what is to be done with them."""

    source: str = Field(pattern="^[0-9a-f]{16}$", description="As in the items.")
    given_name: str = Field(description="The class that somebody said.")
    given: int = Field(ge=0, description="Its label, as in the items.")
    label: int = Field(ge=0, description="The answer of the model.")
    ids: list[Annotated[str, Field(pattern=IMAGE_ID)]] = Field(max_length=MOST_IDS)
    confirm: bool = Field(description="They are used for training as they are; false: they are forgotten.")


class Settled(BaseModel):
    """The outcome of a look at labels that waited."""

    settled: int = Field(description="So many labels wait no more; of the other images none waited.")
    waiting: int = Field(description="Corrections that no training has seen yet.")


class Labelling(NamedTuple):
    """The two places of labels, and the way between them."""

    corrections: Corrections
    queue: ReviewQueue
    second_opinion: bool
    """Every label that contradicts the deployed model waits until somebody confirms it."""
    review: bool
    """People look at images on this service, and may confirm labels."""

    def correct(
        self, served: Served, image: np.ndarray, label: int, confirmed: bool, source: str
    ) -> tuple[Correction, bool]:
        """Store the label of a uint8 image, or hold it back; also return whether that was new.

        A confirmed label is stored in any case. Raises ServiceError as `Corrections` does, and OSError.
        """
        spec = served.predictor.spec
        image = self.corrections.prepared(image, label, spec)
        digest, agrees, new = image_id(image), confirmed, False
        if not self.corrections.has(digest, label, spec):
            self.corrections.require_pace()
            if not confirmed:
                agrees, admitted = self._look(served, image, label, source)
                if not admitted:
                    return Correction(id=digest, label=label, waiting=self.corrections.waiting(), held=True), True
            new = self.corrections.store(image, label, spec)
        if agrees:
            _quietly(self.queue.label, [digest], confirmed)
        return Correction(id=digest, label=label, waiting=self.corrections.waiting()), new

    def take_back(self, digest: str, spec: TaskSpec, source: str) -> None:
        """Forget a label that waits and came from this source, or else undo a correction.

        Raises ServiceError if there is neither.
        """
        if self.queue.discard_held_of(digest, source):
            return
        if not self.corrections.take_back(digest, spec):
            raise ServiceError(404, "unknown_correction", "there is no correction of this id")
        _quietly(self.queue.take_back, digest)

    def settle(self, served: Served, group: HeldGroup) -> Settled:
        """Store the labels of a group that wait, or forget them. Raises ServiceError and OSError."""
        spec = served.predictor.spec
        found = self.queue.held(group.source, group.given, group.label, spec.array_shape, group.ids)
        items = [item for item in found if item.given_name == group.given_name]
        if not group.confirm:
            self.queue.discard(items)
        elif group.given_name not in spec.class_names:
            raise ServiceError(409, "other_classes", f"{group.given_name[:100]!r} is no class now: see /model")
        else:
            label = spec.class_names.index(group.given_name)
            for item in items:
                self.corrections.store(read_array(item.image, spec), label, spec)
            self.queue.label([item.id for item in items], decided=True)
            self.queue.discard(items)
        return Settled(settled=len(items), waiting=self.corrections.waiting())

    def dismiss(self, digest: str, spec: TaskSpec) -> None:
        """Take an image out of the queue that is of no class, and a correction that says it is. Raises OSError."""
        self.queue.label([digest], decided=True)
        self.corrections.take_back(digest, spec)

    def _look(self, served: Served, image: np.ndarray, label: int, source: str) -> tuple[bool, bool]:
        """Return whether the model agrees with a label, and whether it trains at once."""
        told = LabelledImages(image[np.newaxis], np.array([label], np.uint8))
        count, items = contradictions(served.predictor, told, served.predictor.spec, source)
        if not count:
            return True, True
        if image.size > MAX_NUMBERS:
            message = (
                f"the model says otherwise, and images of more than {MAX_NUMBERS:,} numbers are not shown on /review"
            )
            raise too_large(f"{message}: put it into LABELLED_DIR")
        try:
            return False, self.queue.admit(next(items), self.second_opinion)
        except TooManyWait as error:
            raise ServiceError(429, "too_many_wait", str(error), retry_after=HELD_WAIT_SECONDS) from None


def _quietly(change: Callable[..., None], *arguments: object) -> None:
    """Change the queue; where that cannot be, what was done about the correction stays done."""
    try:
        change(*arguments)
    except OSError as error:
        log.warning("what is to be reviewed cannot be stored now: %s", error)
