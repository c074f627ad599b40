"""The scores of a version, kept beside it: for its card, for comparisons, for whoever has the store and no Dagster.

<version>/evaluation.json    written by `model_evaluation`; the last one stays
<version>/mistakes.png       a picture of the surest mistakes on the test images, of the same evaluation
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from mnist_pipeline.ml.records import CoverageCurve, Evaluation, Record
from mnist_pipeline.stores.errors import CorruptModel, ObjectMissing
from mnist_pipeline.stores.objects import ObjectStore

if TYPE_CHECKING:
    from mnist_pipeline.ml.evaluation import SplitScores

EVALUATION, MISTAKES = "evaluation.json", "mistakes.png"


class KeptEvaluation(Record, extra="ignore"):
    """The evaluation of a version with all that its plots show."""

    evaluation: Evaluation
    reliability: dict[str, list[tuple[float, float, int]]] = Field(
        description="By split: mean confidence, accuracy and number of images of each bin of confidence."
    )
    curves: dict[str, CoverageCurve] = Field(description="By split: the errors among the surest images.")
    target_error: float = Field(description="The share of wrong answers, 0..1, that need no review.")
    threshold: float = Field(description="The confidence that follows from it, 0..1.")
    evaluated_at: datetime = Field(description="UTC.")


def keep_evaluation(
    store: ObjectStore,
    evaluation: Evaluation,
    scores: "Mapping[str, SplitScores]",
    target_error: float,
    threshold: float,
) -> None:
    """Keep the evaluation of `evaluation.model`, in place of an earlier one."""
    kept = KeptEvaluation(
        evaluation=evaluation,
        reliability={name: found.reliability for name, found in scores.items()},
        curves={name: found.curve for name, found in scores.items()},
        target_error=target_error,
        threshold=threshold,
        evaluated_at=datetime.now(UTC),
    )
    store.put(f"{evaluation.model.name}/{EVALUATION}", kept.model_dump_json(indent=2).encode())


def kept_mistakes(store: ObjectStore, name: str) -> bytes | None:
    """Return the picture of the mistakes of a version; None if it was not evaluated since there are such pictures."""
    try:
        return store.read_object(f"{name}/{MISTAKES}")[0]
    except ObjectMissing:
        return None


def kept_evaluation(store: ObjectStore, name: str) -> KeptEvaluation | None:
    """Return the evaluation of a version; None if it was never evaluated. Raises CorruptModel."""
    try:
        return KeptEvaluation.model_validate_json(store.read_object(f"{name}/{EVALUATION}")[0])
    except ObjectMissing:
        return None
    except ValidationError as error:
        raise CorruptModel(f"{EVALUATION} of {name} is damaged; delete it, and evaluate it again: {error}") from error
