"""Score a candidate, decide about it, and deploy it or record why not. Each decision is made once."""

import logging
from typing import Literal

from mnist_pipeline.files.errors import DataError
from mnist_pipeline.ml.data import content_digest
from mnist_pipeline.ml.gate import Contender, decide
from mnist_pipeline.ml.manifest import PROMOTED, Decision
from mnist_pipeline.ml.model import ModelError
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.ml.records import Evaluation, Splits
from mnist_pipeline.ml.settings import DeploymentSettings
from mnist_pipeline.stores.base import ModelStore, new_decision
from mnist_pipeline.stores.errors import CorruptModel, UnknownModel

log = logging.getLogger(__name__)

LISTED_CANDIDATES = 20
UNUSABLE = (UnknownModel, CorruptModel, ModelError, DataError)
"""A version that is not there, is damaged, or is of another network or of other images than there are now."""


class CannotDecide(Exception):
    """The gate cannot compare; the message says why and what to do. Trying again would not help."""


def decide_and_deploy(
    store: ModelStore, policy: DeploymentSettings, evaluation: Evaluation, splits: Splits, actor: str
) -> Decision:
    """Score the candidate and the incumbent on `splits.test`, decide by `policy`, deploy if so decided, and record it.

    The candidate is the version that `policy` names, else the one of `evaluation`. Raises CannotDecide where models or
    scores are damaged or missing, and PromotionConflict where somebody else deployed in the meantime: decide again.
    """
    try:
        incumbent = store.production()
        candidate = _candidate(store, policy, evaluation, splits)
        rollback = store.rolled_back(candidate.weights_sha256)
    except UNUSABLE as error:
        raise CannotDecide(str(error)) from error
    contender = _incumbent(store, incumbent, policy, splits)
    verdict = decide(candidate, contender, policy, rollback.reason if rollback else None)
    decision = new_decision(
        outcome=verdict.outcome,
        strategy=policy.strategy,
        reason=verdict.reason,
        version=candidate.name,
        weights_sha256=candidate.weights_sha256,
        test_accuracy=candidate.test_accuracy,
        incumbent=incumbent,
        incumbent_test_accuracy=contender.test_accuracy if contender else None,
        actor=actor,
    )
    if decision.outcome != PROMOTED:
        store.record(decision)
        return decision
    try:
        store.promote(decision)
    except (UnknownModel, CorruptModel) as error:
        raise CannotDecide(str(error)) from error
    return decision


def candidates(store: ModelStore) -> list[dict[str, str | float]]:
    """Return a row for each of the newest versions: `model_name` and `validation_accuracy`."""
    rows: list[dict[str, str | float]] = []
    for name in store.versions()[:LISTED_CANDIDATES]:
        accuracy: float | Literal["unknown"] | None
        try:
            accuracy = store.manifest(name).training.best("validation_accuracy")
        except CorruptModel:
            name, accuracy = f"{name} (damaged)", None  # noqa: PLW2901
        rows.append({"model_name": name, "validation_accuracy": "unknown" if accuracy is None else accuracy})
    return rows


def _candidate(store: ModelStore, policy: DeploymentSettings, evaluation: Evaluation, splits: Splits) -> Contender:
    """Return the version to decide about, with its score on the current test images."""
    if policy.model_name is not None:
        return _score(store, policy.model_name, splits)
    if evaluation.test_digest != content_digest(splits.test):
        raise CannotDecide(
            "the evaluation was made on other test images than there are now: materialize model_evaluation again"
        )
    model = evaluation.model
    return Contender(model.name, model.weights_sha256, evaluation.test.accuracy)


def _incumbent(
    store: ModelStore, incumbent: Decision | None, policy: DeploymentSettings, splits: Splits
) -> Contender | None:
    """Return what is deployed with its score; None if nothing is, or if it is damaged and need not be compared with."""
    try:
        return _score(store, incumbent.version, splits) if incumbent else None
    except UNUSABLE as error:
        if policy.strategy == "quality":
            raise CannotDecide(
                f"the incumbent cannot be compared with: {error}. Roll back, or deploy with 'manual' or 'force'"
            ) from error
        log.warning("an incumbent that cannot be used is replaced: %s", error)
        return None


def _score(store: ModelStore, name: str, splits: Splits) -> Contender:
    """Score on the CPU, as model_evaluation does: scores from two devices could differ by an image."""
    manifest, weights = store.load(name)
    predicted = Predictor(manifest, weights, device="cpu").predict(splits.test.images).argmax(1)
    return Contender(name, manifest.weights_sha256, float((predicted == splits.test.labels).mean()))
