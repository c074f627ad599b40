"""Group model_pipeline, its end: decide about a candidate, deploy it or keep what is deployed."""

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg

from mnist_pipeline.assets.metadata import table
from mnist_pipeline.assets.model import CRASH_RETRIES, GROUP
from mnist_pipeline.ml.records import Decision, Evaluation, Splits
from mnist_pipeline.ml.settings import DeploymentSettings
from mnist_pipeline.stores.base import ModelStoreResource, new_decision
from mnist_pipeline.stores.errors import CorruptModel, UnknownModel

if TYPE_CHECKING:
    from mnist_pipeline.ml.gate import Contender

DEPLOYMENT_FRESHNESS = dg.FreshnessPolicy.time_window(warn_window=timedelta(days=30), fail_window=timedelta(days=90))
"""By the last decision. Nothing retrains while the data stays the same; a model of three months should be looked at."""

GATE_CHECK = "candidate_accepted"
NOT_BY_ITSELF = dg.AutomationCondition.initial_evaluation() & ~dg.AutomationCondition.initial_evaluation()
"""Never true. A check that is part of its asset's step makes automation leave out the asset's other checks (Dagster
1.13, `_build_run_requests_from_partitions_def_mapping`), unless one of them has a condition of its own."""

RETRY_TAG = "dagster/retry_number"
"""On runs that Dagster started again by itself after a crash, not on those that a person re-executed."""


class DeploymentConfig(dg.Config, DeploymentSettings):
    """The deployment gate's policy."""


@dg.asset(
    group_name=GROUP,
    kinds={"python"},
    code_version="1",
    io_manager_key="record_io_manager",
    output_required=False,
    freshness_policy=DEPLOYMENT_FRESHNESS,
    dagster_type=dg.PythonObjectDagsterType(Decision),
    check_specs=[
        dg.AssetCheckSpec(
            GATE_CHECK,
            asset="production_digit_classifier",
            description="Warns when the gate refused the candidate; the incumbent stays deployed.",
            automation_condition=NOT_BY_ITSELF,
        )
    ],
    retry_policy=CRASH_RETRIES,
)
def production_digit_classifier(
    context: dg.AssetExecutionContext,
    config: DeploymentConfig,
    model_evaluation: Evaluation,
    processed_mnist_data: Splits,
    model_store: ModelStoreResource,
) -> Iterator[dg.Output[Decision] | dg.AssetCheckResult]:
    """What is deployed after the gate decided: the promoted candidate, or still the incumbent.

    Yields nothing where nothing was ever deployed; then predictions are skipped."""
    splits = processed_mnist_data
    policy = DeploymentSettings(**config.model_dump())
    if policy.strategy == "manual" and policy.model_name is None:
        context.log.warning("strategy 'manual' without model_name deploys nothing; choose from the check's table")
        current = model_store.production()
        yield dg.AssetCheckResult(
            check_name=GATE_CHECK,
            passed=False,
            severity=dg.AssetCheckSeverity.WARN,
            description="strategy 'manual' needs model_name: the name of one of the candidates",
            metadata={"candidates": table(_candidates(model_store))},
        )
        if current:
            yield _deployment(current, current)
        return

    decision = _decided_before(context, model_store) or _decide(context, policy, model_evaluation, splits, model_store)
    context.log.info("%s %s: %s", decision.outcome, decision.version, decision.reason)
    # Also a refusal is seen among the asset's events, and by the alerts.
    context.log_event(dg.AssetObservation(context.asset_key, metadata=decision.model_dump(mode="json")))
    yield dg.AssetCheckResult(
        check_name=GATE_CHECK,
        passed=decision.outcome != "refused",
        severity=dg.AssetCheckSeverity.WARN,
        description=decision.reason,
        metadata={"candidate": decision.version, "outcome": decision.outcome},
    )
    if deployed := model_store.production():
        yield _deployment(deployed, decision)


def _decided_before(context: dg.AssetExecutionContext, store: ModelStoreResource) -> Decision | None:
    """The decision of an earlier attempt that was killed after it had decided: nothing is decided twice."""
    if context.retry_number == 0 and RETRY_TAG not in context.run.tags:
        return None
    return next((decision for decision in store.decisions() if decision.actor == _actor(context)), None)


def _actor(context: dg.AssetExecutionContext) -> str:
    """The run, or the first of those that Dagster's automatic retries stand for."""
    run = context.run
    while RETRY_TAG in run.tags and run.parent_run_id and (parent := context.instance.get_run_by_id(run.parent_run_id)):
        run = parent
    return f"run {run.run_id}"


def _decide(
    context: dg.AssetExecutionContext,
    policy: DeploymentSettings,
    evaluation: Evaluation,
    splits: Splits,
    store: ModelStoreResource,
) -> Decision:
    """Score, decide, deploy if so decided, and record the decision.

    A PromotionConflict is left to the step's retry, which decides against what is deployed by then.
    """
    from mnist_pipeline.ml.gate import decide
    from mnist_pipeline.ml.network import ModelError

    incumbent = store.production()
    try:
        candidate = _candidate(policy, evaluation, splits, store)
    except (UnknownModel, CorruptModel, ModelError) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    try:
        contender = _score(store, incumbent.version, splits) if incumbent else None
    except (UnknownModel, CorruptModel, ModelError) as error:
        if policy.strategy == "quality":
            raise dg.Failure(
                f"the incumbent cannot be compared with: {error}. Roll back, or deploy with 'manual' or 'force'",
                allow_retries=False,
            ) from error
        context.log.warning("a damaged incumbent is replaced: %s", error)
        contender = None
    rollback = store.rolled_back(candidate.weights_sha256)
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
        actor=_actor(context),
    )
    if decision.outcome != "promoted":
        store.record(decision)
        return decision
    try:
        store.promote(decision)
    except (UnknownModel, CorruptModel) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    return decision


def _candidate(
    policy: DeploymentSettings, evaluation: Evaluation, splits: Splits, store: ModelStoreResource
) -> "Contender":
    """The version to decide about, with its score on the current test images."""
    from mnist_pipeline.ml.data import content_digest
    from mnist_pipeline.ml.gate import Contender

    if policy.model_name is not None:
        return _score(store, policy.model_name, splits)
    if evaluation.test_digest != content_digest(splits.test):
        raise dg.Failure(
            "the evaluation was made on other test images than there are now: materialize model_evaluation again",
            allow_retries=False,
        )
    model = evaluation.model
    return Contender(model.name, model.weights_sha256, evaluation.test.accuracy)


def _score(store: ModelStoreResource, name: str, splits: Splits) -> "Contender":
    """On the CPU, as model_evaluation does: scores from two devices could differ by an image."""
    from mnist_pipeline.ml.gate import Contender
    from mnist_pipeline.ml.predictor import Predictor

    manifest, weights = store.load(name)
    predicted = Predictor(manifest, weights, device="cpu").predict(splits.test.images).argmax(1)
    return Contender(name, manifest.weights_sha256, float((predicted == splits.test.labels).mean()))


def _candidates(store: ModelStoreResource) -> list[dict[str, str | float]]:
    rows: list[dict[str, str | float]] = []
    for name in store.versions()[:20]:
        try:
            rows.append({"model_name": name, "validation_accuracy": store.manifest(name).best.validation_accuracy})
        except CorruptModel:
            rows.append({"model_name": f"{name} (damaged)", "validation_accuracy": "unknown"})
    return rows


def _deployment(deployed: Decision, latest: Decision) -> dg.Output[Decision]:
    """What is deployed, and what was decided last."""
    return dg.Output(
        deployed,
        data_version=dg.DataVersion(deployed.weights_sha256),
        metadata={
            "deployed": deployed.version,
            "deployed_at": dg.MetadataValue.timestamp(deployed.decided_at),
            "deployed_because": deployed.reason,
            "weights_sha256": deployed.weights_sha256,
            "candidate": latest.version,
            "outcome": latest.outcome,
            "reason": latest.reason,
            **({} if latest.test_accuracy is None else {"candidate_test_accuracy": latest.test_accuracy}),
            **(
                {}
                if latest.incumbent_test_accuracy is None
                else {"incumbent_test_accuracy": latest.incumbent_test_accuracy}
            ),
        },
    )
