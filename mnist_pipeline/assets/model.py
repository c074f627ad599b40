"""Group model_pipeline: train a candidate, measure it, decide about it."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from mnist_pipeline.assets.metadata import picture, table
from mnist_pipeline.ml.records import Decision, EpochMetrics, Evaluation, ModelManifest, ModelRecord, Splits
from mnist_pipeline.ml.settings import TRAINING_CODE_VERSION, DeploymentSettings, EvaluationSettings, TrainingSettings
from mnist_pipeline.stores.base import ModelStoreResource, new_decision
from mnist_pipeline.stores.errors import CorruptModel, UnknownModel

if TYPE_CHECKING:
    from mnist_pipeline.ml.gate import Contender

GROUP = "model_pipeline"
TRAINING_POOL = "training"
GATE_CHECK = "candidate_accepted"
CRASH_RETRIES = dg.RetryPolicy(max_retries=2, delay=1)
"""For killed steps, stores out of reach, and another deployer in between; bad input is not retried."""


class CheckpointsResource(dg.ConfigurableResource):
    """Where an unfinished training is kept, so that a killed one continues."""

    directory: str = Field(description="A local folder; on several machines, one that they share.")


class ModelConfig(dg.Config, TrainingSettings):
    """Architecture and recipe of the candidate."""


@dg.asset(
    group_name=GROUP,
    kinds={"pytorch"},
    code_version=TRAINING_CODE_VERSION,
    io_manager_key="record_io_manager",
    pool=TRAINING_POOL,
    retry_policy=CRASH_RETRIES,
)
def digit_classifier(
    context: dg.AssetExecutionContext,
    config: ModelConfig,
    processed_mnist_data: Splits,
    model_store: ModelStoreResource,
    checkpoints: CheckpointsResource,
) -> dg.Output[ModelRecord]:
    """A DigitCNN trained on the train split, of the epoch with the least validation loss, as a new immutable
    version in the model store. A killed training continues after its last whole epoch."""
    from mnist_pipeline.ml.data import content_digest
    from mnist_pipeline.ml.plots import learning_curves
    from mnist_pipeline.ml.training import TrainingDiverged, discard_checkpoint, train

    def report(metrics: EpochMetrics) -> None:
        context.log.info(
            "epoch %d/%d: training loss %.4f, validation loss %.4f, validation accuracy %.4f, %.0f images/s",
            *(metrics.epoch, config.epochs, metrics.train_loss, metrics.validation_loss),
            *(metrics.validation_accuracy, metrics.images_per_second),
        )
        # An observation is shown while the step still runs, and changes no data version.
        context.log_event(dg.AssetObservation(context.asset_key, metadata=metrics.model_dump()))

    settings = TrainingSettings(**config.model_dump())
    try:
        result = train(settings, processed_mnist_data, report, Path(checkpoints.directory))
    except (TrainingDiverged, ValueError) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    manifest = model_store.save(
        result.weights,
        settings=settings,
        normalization=result.normalization,
        history=result.history,
        best_epoch=result.best_epoch,
        data_version=content_digest(*processed_mnist_data),
        code_version=TRAINING_CODE_VERSION,
        run_id=context.run_id,
    )
    discard_checkpoint(settings, processed_mnist_data, Path(checkpoints.directory))
    best = manifest.best
    return dg.Output(
        ModelRecord(
            name=manifest.name,
            weights_sha256=manifest.weights_sha256,
            validation_accuracy=best.validation_accuracy,
            validation_loss=best.validation_loss,
            best_epoch=result.best_epoch,
        ),
        data_version=dg.DataVersion(manifest.weights_sha256),
        metadata={
            "model": manifest.name,
            "weights_sha256": manifest.weights_sha256,
            "validation_accuracy": best.validation_accuracy,
            "validation_loss": best.validation_loss,
            "best_epoch": result.best_epoch,
            "epochs": len(result.history),
            "stopped_early": result.stopped_early,
            "resumed_after_epoch": result.resumed_after,
            "images_per_second": best.images_per_second,
            "device": result.device,
            "precision": result.precision,
            "learning_curves": picture(learning_curves(result.history, result.best_epoch), "learning curves"),
            "settings": dg.MetadataValue.json(settings.model_dump()),
        },
    )


class ModelEvaluationConfig(dg.Config, EvaluationSettings):
    """How the candidate is measured and pictured."""


@dg.asset(group_name=GROUP, kinds={"scikitlearn"}, code_version="1", io_manager_key="record_io_manager")
def model_evaluation(
    config: ModelEvaluationConfig,
    digit_classifier: ModelRecord,
    processed_mnist_data: Splits,
    model_store: ModelStoreResource,
) -> dg.Output[Evaluation]:
    """The scores of exactly the candidate that was just trained, on validation and on test."""
    from mnist_pipeline.ml.data import content_digest
    from mnist_pipeline.ml.evaluation import evaluate
    from mnist_pipeline.ml.network import model_from_bytes
    from mnist_pipeline.ml.plots import confusion, mistake_grid

    manifest, weights = model_store.load(digit_classifier.name)
    _require_same_weights(manifest, digit_classifier.weights_sha256)
    model = model_from_bytes(weights, manifest.settings)
    validation, _ = evaluate(model, processed_mnist_data.validation, manifest.normalization, config)
    test, mistakes = evaluate(model, processed_mnist_data.test, manifest.normalization, config)
    evaluation = Evaluation(
        model=digit_classifier,
        validation=validation,
        test=test,
        test_digest=content_digest(processed_mnist_data.test),
    )
    return dg.Output(
        evaluation,
        # The name of the version holds the time; the same weights and scores are the same evaluation.
        data_version=dg.DataVersion(f"{manifest.weights_sha256[:16]}-{evaluation.digest(exclude={'model'})[:16]}"),
        metadata={
            "model": manifest.name,
            "test_accuracy": test.accuracy,
            "test_loss": test.loss,
            "test_expected_calibration_error": test.expected_calibration_error,
            "validation_accuracy": validation.accuracy,
            "validation_loss": validation.loss,
            "test_images": test.images,
            "per_class": table([metrics.model_dump() for metrics in test.per_class]),
            "confusion_matrix": picture(confusion(test), "confusion matrix on the test images"),
            "worst_mistakes": picture(mistake_grid(processed_mnist_data.test, mistakes), "worst mistakes on test"),
        },
    )


class DeploymentConfig(dg.Config, DeploymentSettings):
    """The deployment gate's policy."""


@dg.asset(
    group_name=GROUP,
    kinds={"python"},
    code_version="1",
    io_manager_key="record_io_manager",
    output_required=False,
    dagster_type=dg.PythonObjectDagsterType(Decision),
    check_specs=[
        dg.AssetCheckSpec(
            GATE_CHECK,
            asset="production_digit_classifier",
            description="Warns when the gate refused the candidate; the incumbent stays deployed.",
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
    from mnist_pipeline.ml.gate import decide
    from mnist_pipeline.ml.network import ModelError

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

    incumbent = model_store.production()
    try:
        candidate = _candidate(policy, model_evaluation, processed_mnist_data, model_store)
    except (UnknownModel, CorruptModel, ModelError) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    try:
        contender = _score(model_store, incumbent.version, processed_mnist_data) if incumbent else None
    except (UnknownModel, CorruptModel, ModelError) as error:
        if policy.strategy == "quality":
            raise dg.Failure(
                f"the incumbent cannot be compared with: {error}. Roll back, or deploy with 'manual' or 'force'",
                allow_retries=False,
            ) from error
        context.log.warning("a damaged incumbent is replaced: %s", error)
        contender = None
    rollback = model_store.rolled_back(candidate.weights_sha256)
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
        actor=f"run {context.run_id}",
    )
    if decision.outcome == "promoted":
        try:
            model_store.promote(decision)  # a PromotionConflict is retried against what is deployed by then
        except (UnknownModel, CorruptModel) as error:
            raise dg.Failure(str(error), allow_retries=False) from error
    else:
        model_store.record(decision)
    context.log.info("%s %s: %s", decision.outcome, decision.version, decision.reason)
    deployed = decision if decision.outcome == "promoted" else incumbent
    yield dg.AssetCheckResult(
        check_name=GATE_CHECK,
        passed=decision.outcome != "refused",
        severity=dg.AssetCheckSeverity.WARN,
        description=decision.reason,
        metadata={"candidate": decision.version, "outcome": decision.outcome},
    )
    if deployed:
        yield _deployment(deployed, decision)


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
    from mnist_pipeline.ml.inference import Predictor

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


def _require_same_weights(manifest: ModelManifest, weights_sha256: str) -> None:
    if manifest.weights_sha256 != weights_sha256:
        raise dg.Failure(
            f"{manifest.name} in the store has other weights than the candidate that was trained", allow_retries=False
        )
