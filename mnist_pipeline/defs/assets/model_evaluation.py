"""The scores of a candidate."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import dagster as dg

from mnist_pipeline.defs.cards import kept_card
from mnist_pipeline.defs.conditions import eager_if_data_changed
from mnist_pipeline.defs.metadata import picture, table
from mnist_pipeline.defs.resources.mlflow import MlflowResource, in_mlflow
from mnist_pipeline.defs.resources.stores import ModelStoreResource
from mnist_pipeline.ml.records import Evaluation, ModelRecord, Splits
from mnist_pipeline.ml.settings import EvaluationSettings
from mnist_pipeline.task.spec import TaskSpec

if TYPE_CHECKING:
    from mnist_pipeline.ml.evaluation import SplitScores

ROUNDING = 1e-9


LISTED_CLASSES, LISTED_SLICES = 10, 5
"""The hardest classes and slices are listed; the card has all."""


class ModelEvaluationConfig(dg.Config, EvaluationSettings):
    """The measures and pictures of the candidate."""


@dg.asset(
    group_name="model_pipeline",
    kinds={"scikitlearn"},
    code_version="2",
    io_manager_key="record_io_manager",
    automation_condition=eager_if_data_changed(),
    dagster_type=dg.PythonObjectDagsterType(Evaluation),
    check_specs=[
        dg.AssetCheckSpec(
            "scores_agree",
            asset="model_evaluation",
            description="Accuracy, support and counts agree with the confusion matrix.",
        )
    ],
)
def model_evaluation(
    context: dg.AssetExecutionContext,
    config: ModelEvaluationConfig,
    digit_classifier: ModelRecord,
    processed_mnist_data: Splits,
    model_store: ModelStoreResource,
    mlflow: MlflowResource,
) -> Iterator[dg.Output[Evaluation] | dg.AssetCheckResult]:
    """The scores of exactly the candidate that was just trained, on validation, on test, and on slices of the suite:
    classes, the ends of what drift watches, corrupted test images, and labelled images that never train."""
    import numpy as np

    from mnist_pipeline.ml.coverage import threshold_for
    from mnist_pipeline.ml.data import content_digest
    from mnist_pipeline.ml.evaluation import evaluate
    from mnist_pipeline.ml.plots import mistake_grid
    from mnist_pipeline.ml.predictor import Predictor
    from mnist_pipeline.ml.suite import HELD_OUT, slice_scores, suite
    from mnist_pipeline.stores.evaluations import MISTAKES, keep_evaluation
    from mnist_pipeline.stores.scores import predict_labels

    manifest, onnx = model_store.load_onnx(digit_classifier.name)
    if not manifest.digests.same(digit_classifier.digests):
        raise dg.Failure(
            f"{manifest.name} in the store has other files than the candidate that was trained", allow_retries=False
        )
    # On the CPU, as the gate scores the incumbent: two devices could differ by an image.
    predictor = Predictor(manifest, onnx, device="cpu")
    scores = {name: evaluate(predictor, processed_mnist_data.parts[name], config) for name in ("validation", "test")}
    test_digest = content_digest(processed_mnist_data.test)
    images = suite(processed_mnist_data, test_digest)
    # They are kept: the gate compares image by image.
    predicted = np.concatenate([predict_labels(model_store, predictor, one, manifest.task) for one in images.sets])
    evaluation = Evaluation(
        model=digit_classifier,
        validation=scores["validation"].evaluation,
        test=scores["test"].evaluation,
        test_digest=test_digest,
        slices=slice_scores(images, predicted == images.labels),
    )
    threshold = threshold_for(scores["validation"].curve, config.target_error)
    keep_evaluation(model_store, evaluation, scores, config.target_error, threshold)
    mistakes = mistake_grid(processed_mnist_data.test, scores["test"].mistakes, manifest.task)
    model_store.put(f"{manifest.name}/{MISTAKES}", mistakes)
    # More held-out labels are no reason to decide about the same weights again.
    lasting = evaluation.model_copy(update={"slices": [one for one in evaluation.slices if one.name != HELD_OUT]})
    yield dg.Output(
        evaluation,
        # The name of the version holds the time; the same weights and scores are the same evaluation.
        data_version=dg.DataVersion(
            f"{manifest.weights_sha256[:16]}-{str(manifest.onnx_sha256)[:16]}-{lasting.digest(exclude={'model'})[:16]}"
        ),
        metadata={
            **_metadata(evaluation, scores, processed_mnist_data.spec, threshold),
            **kept_card(context, model_store, manifest.name),
            **in_mlflow(context, mlflow.mirror(context), model_store, manifest.name),
        },
    )
    yield scores_agree(evaluation)


def _metadata(
    evaluation: Evaluation, scores: "Mapping[str, SplitScores]", spec: TaskSpec, threshold: float
) -> "dict[str, dg.RawMetadataValue]":
    """The numbers, and of the plots the one that is looked at first; the card of the version has them all."""
    from mnist_pipeline.ml.coverage import answered_at
    from mnist_pipeline.ml.plots import confusion

    test, validation = evaluation.test, evaluation.validation
    share, error = answered_at(scores["test"].curve, threshold)
    hardest = sorted(test.per_class, key=lambda metrics: metrics.f1)[:LISTED_CLASSES]
    shown: dict[str, dg.RawMetadataValue] = {
        "model": evaluation.model.name,
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "test_expected_calibration_error": test.expected_calibration_error,
        "validation_accuracy": validation.accuracy,
        "validation_loss": validation.loss,
        "test_images": test.images,
        "confidence_threshold": threshold,
        "test_answered_without_review": share,
        "test_error_without_review": error,
        "per_class": table([{"class": spec.class_names[m.label], **m.model_dump()} for m in hardest]),
        "confusion_matrix": picture(confusion(test, spec), "confusion matrix on the test images"),
    }
    if evaluation.slices:  # of very few test images there are none
        by_accuracy = sorted(evaluation.slices, key=lambda score: score.accuracy)
        shown |= {
            "lowest_slice_accuracy": min(score.accuracy for score in evaluation.slices),
            "lowest_slices": table([score.model_dump() for score in by_accuracy[:LISTED_SLICES]]),
        }
    return shown


def scores_agree(model_evaluation: Evaluation) -> dg.AssetCheckResult:
    """Hold the scores against each other."""
    import numpy as np

    problems = []
    for name, scores in (("validation", model_evaluation.validation), ("test", model_evaluation.test)):
        matrix, classes = np.array(scores.confusion_matrix), len(scores.per_class)
        if matrix.shape != (classes, classes) or matrix.sum() != scores.images or not scores.images:
            problems.append(f"{name}: the confusion matrix holds {matrix.sum()} of {scores.images} images")
            continue
        if abs(np.trace(matrix) / matrix.sum() - scores.accuracy) > ROUNDING:
            problems.append(f"{name}: accuracy {scores.accuracy} is not {np.trace(matrix) / matrix.sum()}")
        if matrix.sum(1).tolist() != [metrics.support for metrics in scores.per_class]:
            problems.append(f"{name}: supports differ from the rows of the confusion matrix")
        if not np.isfinite([scores.loss, scores.expected_calibration_error]).all():
            problems.append(f"{name}: loss or calibration error is not finite")
    return dg.AssetCheckResult(
        passed=not problems,
        description="; ".join(problems) or None,
        metadata={
            "validation_accuracy": model_evaluation.validation.accuracy,
            "test_accuracy": model_evaluation.test.accuracy,
            "test_images": model_evaluation.test.images,
        },
    )
