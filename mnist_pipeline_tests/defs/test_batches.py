"""Batch predictions: where they read, that they predict once, and what they say of drift."""

import shutil
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from mnist_pipeline.ml import inference
from mnist_pipeline.ml.records import BatchPredictions
from mnist_pipeline_tests.conftest import Pipeline, check_results, metadata
from mnist_pipeline_tests.task.examples import TINY

BATCH = "batch_digit_predictions"


@pytest.fixture
def inbox(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


@pytest.fixture
def pipeline(environment, instance, inbox) -> Pipeline:
    pipeline = Pipeline(environment.model_copy(update={"prediction_input": str(inbox)}), instance)
    pipeline.run()
    return pipeline


def record(pipeline: Pipeline, **config) -> BatchPredictions:
    return pipeline.run(BATCH, batch_digit_predictions=config).output_for_node(BATCH)


def test_an_empty_folder_gives_nothing_and_no_failure(pipeline):
    result = pipeline.run(BATCH)
    assert result.success
    assert result.asset_materializations_for_node(BATCH) == []


def test_the_folder_is_read_unless_the_run_names_inputs(pipeline, inbox, small_dataset, tmp_path):
    np.save(inbox / "a.npy", small_dataset.test.images[:20])
    assert record(pipeline).images == 20
    np.save(tmp_path / "other.npy", small_dataset.test.images[:3])
    assert record(pipeline, input_paths=[str(tmp_path / "other.npy")]).images == 3


def test_a_folder_that_is_not_there_is_an_error_that_is_not_retried(pipeline, inbox):
    inbox.rmdir()
    with pytest.raises(dg.Failure, match=r"PREDICTION_INPUT names no folder: .*in") as failed:
        pipeline.run(BATCH)
    assert not failed.value.allow_retries


def test_the_same_inputs_are_predicted_once_by_each_model(pipeline, inbox, small_dataset, monkeypatch):
    predicted: list[str] = []
    predict = inference.predict_to_parquet

    def spy(predictor, *arguments):
        predicted.append(predictor.version)
        return predict(predictor, *arguments)

    monkeypatch.setattr(inference, "predict_to_parquet", spy)
    np.save(inbox / "a.npy", small_dataset.test.images[:20])
    first = pipeline.run(BATCH)
    again = pipeline.run(BATCH)
    assert len(predicted) == 1
    assert again.output_for_node(BATCH) == first.output_for_node(BATCH)
    assert [metadata(run, BATCH)["predicted_before"] for run in (first, again)] == [False, True]
    assert check_results(again)["batch_predictions_are_sane"]

    np.save(inbox / "b.npy", small_dataset.test.images[20:30])  # other inputs
    assert record(pipeline).images == 30
    force = {"strategy": "force", "reason": "a test"}
    pipeline.run(digit_classifier={**TINY, "seed": 3}, production_digit_classifier=force)  # another model
    assert len(set(predicted)) == 2
    assert len(predicted) == 3

    Path(record(pipeline).path).unlink()  # a table that was lost is made again
    assert Path(record(pipeline).path).exists()
    assert len(predicted) == 4


def test_a_table_without_its_record_was_cut_short_and_is_made_again(pipeline, inbox, small_dataset):
    np.save(inbox / "a.npy", small_dataset.test.images[:20])
    whole = record(pipeline)
    Path(whole.path).with_suffix(".json").unlink()
    Path(whole.path).write_bytes(b"half a table")
    assert check_results(pipeline.run(BATCH))["batch_predictions_are_sane"]


def test_inputs_that_change_while_they_are_read_are_read_again(pipeline, inbox, small_dataset, monkeypatch):
    np.save(inbox / "a.npy", small_dataset.test.images[:20])
    predict = inference.predict_to_parquet
    calls: list[int] = []

    def slow(*arguments):
        result = predict(*arguments)
        if not calls:
            np.save(inbox / "b.npy", small_dataset.test.images[20:30])
        calls.append(1)
        return result

    monkeypatch.setattr(inference, "predict_to_parquet", slow)
    monkeypatch.setattr("mnist_pipeline.defs.assets.batch_digit_predictions.CHANGED_INPUTS_WAIT_SECONDS", 0)
    assert record(pipeline).images == 30
    assert len(calls) == 2


def test_unreadable_files_are_named_each_time(pipeline, inbox, small_dataset):
    np.save(inbox / "a.npy", small_dataset.test.images[:20])
    (inbox / "b.png").write_bytes(b"broken")
    for _ in range(2):
        [unreadable] = record(pipeline).unreadable
        assert unreadable.source == str(inbox / "b.png")


def test_drift_is_quiet_on_test_images_and_warns_on_others(pipeline, inbox, small_dataset):
    np.save(inbox / "a.npy", small_dataset.test.images)
    quiet = pipeline.run(BATCH)
    assert check_results(quiet)["no_drift"]
    assert metadata(quiet, BATCH)["drifted"] == "nothing"
    np.save(inbox / "a.npy", np.roll(small_dataset.test.images, 3, axis=2))
    shifted = pipeline.run(BATCH)
    [check] = [check for check in shifted.get_asset_check_evaluations() if check.check_name == "no_drift"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    found = metadata(shifted, BATCH)
    assert found["drifted"] in (check.description or "")
    assert found["drifted_statistics"] >= 1
    assert Path(found["drift_histograms"]).read_bytes().startswith(b"\x89PNG")
    assert Path(found["drift_histograms"]).parent == Path(found["predictions"]).parent
    assert {row.data["statistic"] for row in found["drift"].records} == set(
        pipeline.store.manifest(found["model"]).training.drift_reference.histograms
    )


def test_a_model_from_before_there_were_references_still_predicts(pipeline, inbox, small_dataset):
    store, version = pipeline.store, pipeline.store.production().version
    manifest, _ = store.load(version)
    _, token = store.read_object(f"{version}/manifest.json")
    training = manifest.training.model_copy(update={"drift_reference": None})
    without = manifest.model_copy(update={"training": training})
    store.replace_object(
        f"{version}/manifest.json",
        without.model_dump_json().encode(),
        token,
    )
    np.save(inbox / "a.npy", small_dataset.test.images[:20])
    checks = check_results(pipeline.run(BATCH))
    assert checks == {"batch_predictions_are_sane": True, "no_drift": False}
    shutil.rmtree(inbox)
