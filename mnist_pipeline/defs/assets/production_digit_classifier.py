"""The deployed version, after the gate has decided about the candidate."""

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from mnist_pipeline.defs.assets.processed_mnist_data import processed_mnist_data
from mnist_pipeline.defs.cards import kept_card
from mnist_pipeline.defs.conditions import eager_if_data_changed
from mnist_pipeline.defs.metadata import picture, table
from mnist_pipeline.defs.resources.mlflow import MlflowResource, in_mlflow, moved_alias
from mnist_pipeline.defs.resources.stores import ModelStoreResource
from mnist_pipeline.defs.training import CRASH_RETRIES
from mnist_pipeline.ml.manifest import Comparison, Decision
from mnist_pipeline.ml.records import Evaluation, Splits
from mnist_pipeline.ml.settings import DeploymentSettings

if TYPE_CHECKING:
    from mnist_pipeline.stores.deployment import Decided

DEPLOYMENT_FRESHNESS = dg.FreshnessPolicy.time_window(warn_window=timedelta(days=30), fail_window=timedelta(days=90))
"""The age of the last decision. Nothing retrains while the data stays the same; look at a model of three months."""

GATE_CHECK = "candidate_accepted"
WORKS_CHECK = "deployed_model_works"
LISTED_VERSIONS = 20
LISTED_SLICES = 6
"""The slices on which the candidate may be worst; the decision's reason names all on which it is."""
PICTURED_OF_EACH, PICTURED_BYTES = 10, 2500
LATEST_DECISIONS = 100
"""The decision of an attempt that was killed a moment ago is among the latest: so many others decide in no time."""

DECISION_ID = "deployed_by_decision"
"""The name in the metadata of the decision that deployed what is deployed."""

RETRY_TAG = "dagster/retry_number"
"""The tag of runs that Dagster started again by itself after a crash, not of those that a person re-executed."""


class DeploymentConfig(dg.Config, DeploymentSettings):
    """The deployment gate's policy."""


@dg.asset(
    group_name="model_pipeline",
    kinds={"python"},
    code_version="1",
    io_manager_key="record_io_manager",
    output_required=False,
    freshness_policy=DEPLOYMENT_FRESHNESS,
    dagster_type=dg.PythonObjectDagsterType(Decision),
    # The test images are read, too, but it is a new evaluation that sets the gate off.
    automation_condition=eager_if_data_changed(ignoring=frozenset({processed_mnist_data.key})),
    check_specs=[
        dg.AssetCheckSpec(
            GATE_CHECK,
            asset="production_digit_classifier",
            description="Warns when the gate refused the candidate, or it waits; the incumbent stays deployed.",
        ),
        dg.AssetCheckSpec(
            WORKS_CHECK,
            asset="production_digit_classifier",
            blocking=True,
            description="What is deployed loads, has the digest of its manifest, and gives finite outputs; "
            "otherwise nothing is predicted with it.",
        ),
    ],
    retry_policy=CRASH_RETRIES,
)
def production_digit_classifier(
    context: dg.AssetExecutionContext,
    config: DeploymentConfig,
    model_evaluation: Evaluation,
    processed_mnist_data: Splits,
    model_store: ModelStoreResource,
    mlflow: MlflowResource,
) -> Iterator[dg.Output[Decision] | dg.AssetCheckResult]:
    """The version that is deployed after the gate decided: the promoted candidate, or still the incumbent.

    Yields nothing where nothing was ever deployed; then predictions are skipped."""
    from mnist_pipeline.stores.deployment import CannotDecide, decide_and_deploy

    policy = DeploymentSettings(**config.model_dump())
    if policy.strategy == "observe" or (policy.strategy == "manual" and policy.model_name is None):
        yield from _nothing_decided(context, model_store, policy, mlflow)
        yield deployed_model_works(model_store)
        return
    decided = None
    try:
        decision = _decided_before(context, model_store)
        if decision is None:
            decided = decide_and_deploy(model_store, policy, model_evaluation, processed_mnist_data, _actor(context))
            decision = decided.decision
    except CannotDecide as error:  # a PromotionConflict is left to the step's retry, which decides anew
        raise dg.Failure(str(error), allow_retries=False) from error
    context.log.info("%s %s: %s", decision.outcome, decision.version, decision.reason)
    # Also a refusal is seen among the asset's events, and by the alerts.
    context.log_event(dg.AssetObservation(context.asset_key, metadata=decision.model_dump(mode="json")))
    evidence = _evidence(decision, decided, processed_mnist_data)
    if deployed := model_store.production():
        cards = _cards(context, model_store, mlflow, deployed.version, decision.version)
        yield _deployment(deployed, decision, evidence | cards)
    # After the materialization: a check's result is about the latest one.
    yield dg.AssetCheckResult(
        check_name=GATE_CHECK,
        passed=decision.outcome not in ("refused", "waiting"),
        severity=dg.AssetCheckSeverity.WARN,
        description=decision.reason,
        metadata={"candidate": decision.version, "outcome": decision.outcome, **_scores(decision), **evidence},
    )
    yield deployed_model_works(model_store)


def _nothing_decided(
    context: dg.AssetExecutionContext, store: ModelStoreResource, policy: DeploymentSettings, mlflow: MlflowResource
) -> Iterator[dg.Output[Decision] | dg.AssetCheckResult]:
    """Record what is deployed: as it is, or to choose another version by hand from the table in the check."""
    from mnist_pipeline.stores.overview import overview

    current, observing = store.production(), policy.strategy == "observe"
    if current and observing:  # a rollback or an approval by command is told like the decisions of the graph, once
        context.log_event(dg.AssetObservation(context.asset_key, metadata=current.model_dump(mode="json")))
    if current:
        cards = _cards(context, store, mlflow, current.version)
        yield _deployment(current, current, cards)
    if observing:
        described = f"{current.outcome} by {current.actor}: {current.reason}" if current else "nothing is deployed"
        shown: dict[str, Any] = _scores(current) | {"deployed": current.version} if current else {}
    else:
        described = "strategy 'manual' needs model_name: the name of one of the candidates in the table"
        context.log.warning(described)
        shown = {"candidates": table([row._asdict() for row in overview(store, LISTED_VERSIONS).rows])}
    yield dg.AssetCheckResult(
        check_name=GATE_CHECK,
        passed=observing,
        severity=dg.AssetCheckSeverity.WARN,
        description=described,
        metadata=shown,
    )


def _cards(
    context: dg.AssetExecutionContext, store: ModelStoreResource, mlflow: MlflowResource, *names: str
) -> "dict[str, dg.RawMetadataValue]":
    """Make the cards of versions again, here and in MLflow, and move its alias to what is deployed."""
    cards, mirror = kept_card(context, store, *names), mlflow.mirror(context)
    cards |= in_mlflow(context, mirror, store, *names)
    moved_alias(context, mirror, store)
    return cards


def _decided_before(context: dg.AssetExecutionContext, store: ModelStoreResource) -> Decision | None:
    """The decision of an earlier attempt that was killed after it had decided: nothing is decided twice."""
    if context.retry_number == 0 and RETRY_TAG not in context.run.tags:
        return None
    latest = store.decisions(LATEST_DECISIONS)
    return next((entry for entry in latest if isinstance(entry, Decision) and entry.actor == _actor(context)), None)


def _actor(context: dg.AssetExecutionContext) -> str:
    """The run, or the first of those that Dagster's automatic retries stand for."""
    run = context.run
    while RETRY_TAG in run.tags and run.parent_run_id and (parent := context.instance.get_run_by_id(run.parent_run_id)):
        run = parent
    return f"run {run.run_id}"


def _deployment(
    deployed: Decision, latest: Decision, evidence: "dict[str, dg.RawMetadataValue]"
) -> dg.Output[Decision]:
    """Return what is deployed, with the last decision as metadata."""
    return dg.Output(
        deployed,
        data_version=dg.DataVersion(str(deployed.digests)),
        metadata={
            "deployed": deployed.version,
            "deployed_at": dg.MetadataValue.timestamp(deployed.decided_at),
            "deployed_because": deployed.reason,
            DECISION_ID: deployed.id,
            "reference": deployed.reference,
            "weights_sha256": deployed.weights_sha256,
            **({"onnx_sha256": deployed.onnx_sha256} if deployed.onnx_sha256 else {}),
            "candidate": latest.version,
            "outcome": latest.outcome,
            "reason": latest.reason,
            **_scores(latest),
            **evidence,
        },
    )


def _scores(decision: Decision) -> dict[str, float]:
    """The numbers of a decision that are worth a plot over time, as far as they were measured."""
    scores = {
        "candidate_test_accuracy": decision.test_accuracy,
        "incumbent_test_accuracy": decision.incumbent_test_accuracy,
        "earlier_decisions": decision.earlier_decisions,
    }
    if decision.comparisons:
        first = decision.comparisons[0]
        scores |= {"regression": first.regression, "regression_high": first.regression_high}
    if decision.serving:
        scores |= {"median_latency_ms": decision.serving.median_ms, "serving_memory_mib": decision.serving.memory_mib}
    return {name: score for name, score in scores.items() if score is not None}


def _evidence(decision: Decision, decided: "Decided | None", splits: Splits) -> "dict[str, dg.RawMetadataValue]":
    """The comparisons as a table, and a picture of the images that the candidate fixes and breaks."""
    from mnist_pipeline.ml.plots import disagreement_grid

    shown: dict[str, dg.RawMetadataValue] = {}
    if decision.comparisons:
        columns = {comparison.role: _in_words(comparison) for comparison in decision.comparisons}
        measures = next(iter(columns.values()))
        rows = [{"measure": name} | {role: told[name] for role, told in columns.items()} for name in measures]
        shown["comparisons"] = table(rows)
    if decided and decided.slices:
        worst = sorted(decided.slices, key=lambda comparison: comparison.regression_high, reverse=True)
        shown["slices"] = table([_slice_row(comparison) for comparison in worst[:LISTED_SLICES]])
    if decided and decided.incumbent and (decided.candidate.labels != decided.incumbent.labels).any():
        labels = (decided.candidate.labels, decided.incumbent.labels)
        grid = disagreement_grid(splits.test, *labels, splits.spec, PICTURED_OF_EACH)
        shown["fixed_and_broken"] = picture(grid, "test images that the candidate fixes and breaks", PICTURED_BYTES)
    return shown


def _in_words(comparison: Comparison) -> dict[str, str]:
    """One column of the table."""
    return {
        "version": comparison.version,
        "its test accuracy": f"{comparison.test_accuracy:.4f}",
        "images that the candidate fixes": str(comparison.fixed),
        "images that the candidate breaks": str(comparison.broken),
        "of images": f"{comparison.images:,}",
        "regression (negative: a gain)": f"{comparison.regression:.4f}",
        "its interval (one-sided 95% each)": f"{comparison.regression_low:.4f} to {comparison.regression_high:.4f}",
        "p: worse by chance (exact McNemar)": f"{comparison.p_worse:.2g}",
        "p: better by chance": f"{comparison.p_better:.2g}",
        "smallest margin that the images hold": f"{comparison.margin_held:.4f}",
    }


def _slice_row(comparison: Comparison) -> dict[str, str | int | float]:
    """One row of the table of slices."""
    return {
        "slice": str(comparison.slice),
        "beside": comparison.role,
        "images": comparison.images,
        "its accuracy": comparison.test_accuracy,
        "candidate's accuracy": comparison.test_accuracy - comparison.regression,
        "fixed": comparison.fixed,
        "broken": comparison.broken,
        "change": f"{-comparison.regression_high:+.4f} to {-comparison.regression_low:+.4f}",
        "p: worse by chance": comparison.p_worse,
    }


def deployed_model_works(model_store: ModelStoreResource) -> dg.AssetCheckResult:
    """Load what is deployed, and predict with it."""
    from mnist_pipeline.ml.errors import ModelError, NoDeployedModel
    from mnist_pipeline.ml.predictor import Predictor
    from mnist_pipeline.stores.errors import ModelStoreError

    try:
        predictor = Predictor.from_store(model_store)
        black, white = predictor.verify()
    except NoDeployedModel:  # nothing was materialized either, so there is nothing to block
        severity = dg.AssetCheckSeverity.WARN
        return dg.AssetCheckResult(
            check_name=WORKS_CHECK, passed=False, severity=severity, description="nothing is deployed"
        )
    except (ModelStoreError, ModelError) as error:
        return dg.AssetCheckResult(
            check_name=WORKS_CHECK, passed=False, description=f"{error}. Roll back, or deploy another version"
        )
    return dg.AssetCheckResult(
        check_name=WORKS_CHECK,
        passed=True,
        metadata={
            "model": predictor.version,
            "confidence_on_black": black,
            "confidence_on_white": white,
        },
    )
