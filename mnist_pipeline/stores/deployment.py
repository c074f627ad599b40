"""Score a candidate, decide about it, and deploy it or record why not. Each decision is made once."""

import logging
from typing import NamedTuple

import numpy as np

from mnist_pipeline.files.errors import DataError
from mnist_pipeline.ml.comparison import Contender
from mnist_pipeline.ml.data import content_digest
from mnist_pipeline.ml.errors import ModelError
from mnist_pipeline.ml.gate import Verdict, decide
from mnist_pipeline.ml.manifest import PROMOTED, WAITING, Comparison, Decision, ServingCheck
from mnist_pipeline.ml.records import UNKNOWN, Evaluation, Splits
from mnist_pipeline.ml.settings import DeploymentSettings
from mnist_pipeline.ml.suite import HELD_OUT, Suite, suite
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.decisions import new_decision
from mnist_pipeline.stores.errors import CorruptModel, UnknownModel
from mnist_pipeline.stores.scores import predicted_labels
from mnist_pipeline.stores.serving import CannotBeServed, check_served
from mnist_pipeline.stores.state import State
from mnist_pipeline.task.known import least_accuracy
from mnist_pipeline.task.spec import TaskSpec

log = logging.getLogger(__name__)

UNUSABLE = (UnknownModel, CorruptModel, ModelError, DataError)
"""A version that is not there, is damaged, or is of another network or of other images than there are now."""


class CannotDecide(Exception):
    """The gate cannot compare; the message says why and what to do. Trying again would not help."""


class Scored(NamedTuple):
    """A version with its results on the suite."""

    contender: Contender
    labels: np.ndarray
    """int64 (N,): the label it predicts for each test image."""


class Decided(NamedTuple):
    """A decision, and the results that it is about."""

    decision: Decision
    slices: tuple[Comparison, ...]
    """The comparisons on all slices; the decision keeps those that it speaks of."""
    candidate: Scored
    incumbent: Scored | None
    """It is None where nothing that can be compared with was deployed."""


def decide_and_deploy(
    store: ModelStore, policy: DeploymentSettings, evaluation: Evaluation, splits: Splits, actor: str
) -> Decided:
    """Compare candidate, incumbent and reference on the suite of `splits`, decide by `policy`, deploy if so decided.

    The candidate is the version that `policy` names, else the one of `evaluation`. Every decision is recorded. Raises
    CannotDecide where models or scores are damaged or missing, and PromotionConflict where somebody else deployed in
    the meantime: decide again.
    """
    digest = content_digest(splits.test)
    if policy.accuracy_threshold is None:
        policy = policy.model_copy(update={"accuracy_threshold": least_accuracy(splits.spec.name, splits.test.labels)})
    if policy.model_name is None and evaluation.test_digest != digest:
        raise CannotDecide(
            "the evaluation was made on other test images than there are now: materialize model_evaluation again"
        )
    images = suite(splits, digest)
    try:
        state = store.state()
        candidate = _score(store, policy.model_name or evaluation.model.name, images, splits.spec)
        earlier = store.earlier_decisions(state, digest)
    except UNUSABLE as error:
        raise CannotDecide(str(error)) from error
    deployed, waiting = state.deployed, state.waiting
    incumbent, reference = _rivals(store, deployed, policy, images, splits.spec, candidate)
    verdict = decide(
        candidate.contender,
        incumbent.contender if incumbent else None,
        reference.contender if reference else None,
        policy,
        state.rolled_back_because(candidate.contender.digests),
        same_task=incumbent is None or _same_task(store, candidate, incumbent),
        slices=images.slices,
    )
    verdict, serving = _served(store, verdict, candidate, splits, policy)
    if verdict.outcome == WAITING and waiting and _is_about(waiting, candidate, digest):
        store.record(waiting)  # a kill may have kept it out of the audit trail
        return Decided(waiting, verdict.slices, candidate, incumbent)
    decision = new_decision(
        outcome=verdict.outcome,
        strategy=policy.strategy,
        reason=_with_count(verdict, earlier),
        version=candidate.contender.name,
        weights_sha256=candidate.contender.digests.weights_sha256,
        onnx_sha256=candidate.contender.digests.onnx_sha256,
        test_accuracy=candidate.contender.accuracy,
        incumbent=deployed,
        incumbent_test_accuracy=incumbent.contender.accuracy if incumbent else None,
        actor=actor,
        test_digest=digest,
        earlier_decisions=earlier,
        comparisons=verdict.comparisons,
        slices=(*verdict.lost_slices, *(one for one in verdict.slices if one.slice == HELD_OUT)),
        serving=serving,
        max_regression=policy.max_regression if verdict.by_evidence else None,
        too_few_images=verdict.too_few_images,
        reference_version=None if verdict.becomes_reference or not deployed else deployed.reference,
    )
    _carry_out(store, decision, state)
    return Decided(decision, verdict.slices, candidate, incumbent)


def _served(
    store: ModelStore, verdict: Verdict, candidate: Scored, splits: Splits, policy: DeploymentSettings
) -> tuple[Verdict, ServingCheck | None]:
    """Refuse what would be promoted and the service cannot answer with; also return how it answered, if asked."""
    if verdict.outcome not in (PROMOTED, WAITING) or policy.serve_check == "off":
        return verdict, None
    predicted = candidate.labels if (candidate.labels >= 0).all() else None
    try:
        manifest, onnx = store.load_onnx(candidate.contender.name)
        return verdict, check_served(manifest, onnx, splits.test, predicted, policy.max_latency_ms)
    except UNUSABLE as error:
        raise CannotDecide(str(error)) from error
    except CannotBeServed as error:
        reason = f"{verdict.reason}; but it cannot be served: {error}"
        return verdict._replace(outcome="refused", reason=reason, becomes_reference=False), None


def _is_about(decision: Decision, candidate: Scored, digest: str) -> bool:
    name, digests = candidate.contender.name, candidate.contender.digests
    return (decision.version, decision.test_digest) == (name, digest) and digests.same(decision.digests)


def _same_task(store: ModelStore, candidate: Scored, incumbent: Scored) -> bool:
    """Return False for equal weights of a task with other names; of other weights it need not be known."""
    ours, theirs = candidate.contender, incumbent.contender
    if ours.name == theirs.name or not ours.digests.same(theirs.digests):
        return True
    return store.manifest(ours.name).task == store.manifest(theirs.name).task


def _carry_out(store: ModelStore, decision: Decision, state: State) -> None:
    try:
        if decision.outcome == PROMOTED:
            store.promote(decision, state)
        else:
            store.record(decision, state)
    except (UnknownModel, CorruptModel) as error:
        raise CannotDecide(str(error)) from error


def _with_count(verdict: Verdict, earlier: int) -> str:
    """The reason; where the test images decided, also how often they had done so before."""
    counted = f"{verdict.reason}; earlier decisions by these test images: {earlier}"
    return counted if verdict.by_evidence else verdict.reason


def _rivals(
    store: ModelStore,
    deployed: Decision | None,
    policy: DeploymentSettings,
    images: Suite,
    spec: TaskSpec,
    candidate: Scored,
) -> tuple[Scored | None, Scored | None]:
    """Return incumbent and reference with their results.

    None is an incumbent where nothing is deployed, a reference that is the incumbent itself, and either if it cannot be
    used and need not be compared with.
    """
    if deployed is None:
        return None, None
    found: list[Scored | None] = []
    for role, name in (("incumbent", deployed.version), ("reference", deployed.reference)):
        if role == "reference" and name == deployed.version:
            found.append(None)
            continue
        try:
            rival = _score(store, name, images, spec)
            if not candidate.contender.shares_classes(rival.contender):
                raise ModelError(f"{name} and {candidate.contender.name} have no class in common")
            found.append(rival)
        except UNUSABLE as error:
            if policy.strategy in ("quality", "approval"):
                raise CannotDecide(
                    f"the {role} cannot be compared with: {error}. Roll back, or deploy with 'manual' or 'force'"
                ) from error
            log.warning("the %s cannot be used, and nothing is compared with it: %s", role, error)
            found.append(None)
    return found[0], found[1]


def _score(store: ModelStore, name: str, images: Suite, spec: TaskSpec) -> Scored:
    digests, answers = predicted_labels(store, name, images.sets, spec)
    everything = np.concatenate(answers)
    correct, unknown, tested = everything == images.labels, everything == UNKNOWN, slice(images.test_images)
    in_suite = Contender(name, digests, correct, unknown)
    return Scored(Contender(name, digests, correct[tested], unknown[tested], in_suite), everything[tested])
