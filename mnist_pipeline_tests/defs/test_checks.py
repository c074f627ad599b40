"""Each asset check fails on what it is there to notice."""

# mypy: disable-error-code="attr-defined,call-arg"

import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from mnist_pipeline.defs.assets.batch_digit_predictions import batch_prediction_checks
from mnist_pipeline.defs.assets.digit_classifier import stored_candidate_is_sound
from mnist_pipeline.defs.assets.digit_predictions import digit_predictions_are_sane
from mnist_pipeline.defs.assets.model_evaluation import scores_agree
from mnist_pipeline.defs.assets.processed_mnist_data import processed_data_checks
from mnist_pipeline.defs.assets.production_digit_classifier import deployed_model_works
from mnist_pipeline.defs.assets.raw_mnist_data import raw_data_checks
from mnist_pipeline.defs.resources.folders import PredictionsResource
from mnist_pipeline.ml.records import Splits
from mnist_pipeline.stores.exports import ONNX
from mnist_pipeline.stores.versions import WEIGHTS
from mnist_pipeline.task.dataset import Dataset, LabelledImages, no_images
from mnist_pipeline_tests.conftest import Pipeline
from mnist_pipeline_tests.task.examples import SPEC, TINY


def outcomes(results: Any) -> dict[str | None, bool]:
    return {result.check_name: result.passed for result in results}


def raw(small: Dataset, **changes) -> dict[str | None, bool]:
    return outcomes(raw_data_checks(raw_mnist_data=small._replace(**changes)))


def test_raw_data(small_dataset):
    assert raw(small_dataset, is_sample=False) == {"complete": True, "class_sizes": True, "full_data_set": True}
    assert raw(small_dataset)["full_data_set"] is False
    labels = small_dataset.train.labels
    few = np.concatenate([np.flatnonzero(labels != 3), np.flatnonzero(labels == 3)[:5]])
    rare = LabelledImages(*(array[few] for array in small_dataset.train))
    sizes = next(r for r in raw_data_checks(small_dataset._replace(train=rare)) if r.check_name == "class_sizes")
    assert (sizes.passed, sizes.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "has 80 training images and 3 only 5: consider class_weights: balanced" in str(sizes.description)
    images, labels = small_dataset.test
    assert raw(small_dataset, test=LabelledImages(images[labels != 1], labels[labels != 1]))["complete"] is False
    assert raw(small_dataset, test=LabelledImages(images, labels + 1))["complete"] is False
    assert raw(small_dataset, train=no_images(small_dataset.spec))["complete"] is False


def processed(splits: Splits, small: Dataset) -> list[str | None]:
    """The names of the checks that fail."""
    results = processed_data_checks(processed_mnist_data=splits, raw_mnist_data=small, labelled=splits.held_out)
    return [name for name, passed in outcomes(results).items() if not passed]


def join(*parts: LabelledImages) -> LabelledImages:
    return LabelledImages(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def test_processed_data(splits, small_dataset):
    assert processed(splits, small_dataset) == []
    train, validation, test, *_ = splits
    assert processed(splits._replace(train=join(train, LabelledImages(*(a[:3] for a in test)))), small_dataset) == [
        "no_leakage"
    ]
    # As many images as before, but three of them are not those of the raw data.
    swapped = train.images.copy()
    swapped[:3] = 7
    assert processed(splits._replace(train=train._replace(images=swapped)), small_dataset) == ["nothing_lost"]
    assert processed(splits._replace(test=LabelledImages(*(a[1:] for a in test))), small_dataset) == ["nothing_lost"]
    zeros = validation.labels == 0
    unbalanced = splits._replace(
        train=join(train, LabelledImages(validation.images[zeros], validation.labels[zeros])),
        validation=LabelledImages(validation.images[~zeros], validation.labels[~zeros]),
    )
    assert processed(unbalanced, small_dataset) == ["class_balance"]
    by_class = np.array([np.flatnonzero(validation.labels == label)[0] for label in range(splits.spec.classes)])
    rest = np.setdiff1d(np.arange(len(validation.labels)), by_class)
    tiny = splits._replace(
        train=join(train, LabelledImages(*(a[rest] for a in validation))),
        validation=LabelledImages(*(a[by_class] for a in validation)),
    )
    assert processed(tiny, small_dataset) == ["split_proportions"]


@pytest.fixture
def ran(pipeline: Pipeline):
    return pipeline, pipeline.run()


def test_the_checks_of_what_was_stored(ran, tmp_path):
    pipeline, result = ran
    candidate = result.output_for_node("digit_classifier")
    store = pipeline.store
    assert stored_candidate_is_sound(candidate, store).passed
    assert deployed_model_works(store).passed
    other = candidate.model_copy(update={"weights_sha256": "0" * 64})
    assert not stored_candidate_is_sound(other, store).passed
    for file, checks in {
        WEIGHTS: [lambda: stored_candidate_is_sound(candidate, store)],
        ONNX: [lambda: stored_candidate_is_sound(candidate, store), lambda: deployed_model_works(store)],
    }.items():
        key = f"{candidate.name}/{file}"
        data, token = store.read_object(key)
        store.replace_object(key, data[:-1] + bytes([data[-1] ^ 1]), token)
        for check in checks:
            broken = check()
            assert not broken.passed
            assert f"{file} of {candidate.name} has SHA-256" in str(broken.description)
        store.put(key, data)

    evaluation = result.output_for_node("model_evaluation")
    assert scores_agree(evaluation).passed
    for change in (
        {"accuracy": evaluation.test.accuracy - 0.01},
        {"images": evaluation.test.images - 1},
        {"loss": float("nan")},
        {"per_class": list(reversed(evaluation.test.per_class))[:-1]},
        {"confusion_matrix": np.zeros_like(evaluation.test.confusion_matrix).tolist()},
    ):
        wrong = evaluation.model_copy(update={"test": evaluation.test.model_copy(update=change)})
        assert not scores_agree(wrong).passed, change

    now = result.output_for_node("digit_predictions")
    assert digit_predictions_are_sane(now, SPEC.classes).passed
    assert not digit_predictions_are_sane(now.model_copy(update={"predictions": []}), SPEC.classes).passed
    doubtful = now.predictions[0].model_copy(update={"confidence": 1.5})
    assert not digit_predictions_are_sane(now.model_copy(update={"predictions": [doubtful]}), SPEC.classes).passed

    batch = result.output_for_node("batch_digit_predictions")
    moved = Path(shutil.copytree(Path(batch.path).parent, tmp_path / "moved"))  # as if mounted elsewhere by now
    folder = PredictionsResource(location=str(moved))

    def found(**changes):
        return outcomes(batch_prediction_checks(batch.model_copy(update=changes), folder))

    assert found() == {"batch_predictions_are_sane": True, "no_drift": True}
    for change in ({"images": evaluation.test.images - 1}, {"model": "another"}):
        assert found(**change)["batch_predictions_are_sane"] is False
    shifted = batch.drift.findings[2].model_copy(update={"drifted": True})
    assert found(drift=batch.drift.model_copy(update={"findings": [shifted]}))["no_drift"] is False
    assert found(drift=None)["no_drift"] is False


def test_the_blocking_check_stops_predictions(ran, monkeypatch):
    pipeline, _ = ran
    # The gate is satisfied (nothing to compare), and the damage comes between it and the predictions.
    promote = type(pipeline.store).promote

    def promote_then_damage(self, decision, seen):
        promote(self, decision, seen)
        self.delete_object(f"{decision.version}/{ONNX}")

    monkeypatch.setattr(type(pipeline.store), "promote", promote_then_damage)
    force = {"strategy": "force", "reason": "a test"}
    result = pipeline.run(
        digit_classifier={**TINY, "epochs": 1},
        production_digit_classifier=force,
        raise_on_error=False,
    )
    assert not result.success
    made = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}
    assert "production_digit_classifier" in made
    assert not {"batch_digit_predictions", "digit_predictions"} & made
