"""Stored versions, scored again on the images of now and of before."""

from typing import Any

import dagster as dg
import pytest

from mnist_pipeline.environment import Environment
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.stores.evaluations import kept_evaluation
from mnist_pipeline.stores.exports import ONNX
from mnist_pipeline_tests.conftest import Pipeline, check_results, metadata
from mnist_pipeline_tests.task.examples import TINY, small_dataset, variables_of, write_files


@pytest.fixture
def two(tmp_path, instance) -> tuple[Pipeline, str, str]:
    """A version that was tested on 200 images, and one, deployed, that was tested on 150 others."""
    raw = tmp_path / "raw"
    raw.mkdir()
    environment = Environment.read({"STORAGE_ROOT": str(tmp_path / "storage"), **variables_of(raw)})
    names = []
    for seed, test in enumerate((20, 15)):
        write_files(raw, small_dataset(80, test))
        pipeline = Pipeline(environment, instance)
        pipeline.run(
            *("raw_mnist_data", "processed_mnist_data", "digit_classifier", "model_evaluation"),
            "production_digit_classifier",
            digit_classifier=TINY | {"seed": seed},
            production_digit_classifier={"strategy": "force", "reason": "a test", "serve_check": "off"},
        )
        names.append(pipeline.store.production().version)
    return pipeline, names[0], names[1]


def scored(pipeline: Pipeline, **config: Any) -> dg.ExecuteInProcessResult:
    job = pipeline.defs.resolve_job_def("backtest_job")
    run_config = {"ops": {"backtest": {"config": config}}} if config else None
    return job.execute_in_process(instance=pipeline.instance, run_config=run_config)


def rows_of(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    return {row.data["version"]: row.data for row in metadata(result, "backtest")["accuracies"].records}


def test_versions_by_sets_and_each_is_asked_once(two, monkeypatch):
    pipeline, old, new = two
    store = pipeline.store
    result = scored(pipeline)
    rows = rows_of(result)
    assert list(rows) == [new, old]
    [earlier] = [name for name in rows[new] if name.startswith("earlier test images")]
    evaluations = {name: kept.evaluation for name in (old, new) if (kept := kept_evaluation(store, name))}
    # What they were when they were evaluated, each on the test images of its time.
    assert rows[new]["test images"] == round(evaluations[new].test.accuracy, 4)
    assert rows[old][earlier] == round(evaluations[old].test.accuracy, 4)
    images, labels = small_dataset(80, 20).test
    on_before = Predictor(*store.load_onnx(new)).predict(images).argmax(1) == labels
    assert rows[new][earlier] == round(float(on_before.mean()), 4)
    for score in evaluations[new].slices:
        if score.name.startswith("corrupted"):
            assert rows[new][score.name] == round(score.accuracy, 4)
    shown = metadata(result, "backtest")
    assert (shown["versions"], shown["sets"], shown["deployed"]) == (2, len(rows[new]) - 1, new)
    assert shown["accuracy_of_the_deployed"] == evaluations[new].test.accuracy
    assert shown["heat_map"].startswith("![accuracy of versions on sets of images](data:image/webp;base64,")
    assert check_results(result) == {"all_versions_scored": True}
    assert len(list(store.decisions())) == 2  # it decides nothing
    monkeypatch.setattr("mnist_pipeline.stores.scores.Predictor", None)
    assert rows_of(scored(pipeline)) == rows


def test_its_settings_choose_versions_and_sets(two):
    pipeline, old, new = two
    assert list(rows_of(scored(pipeline, versions=[old[:34]]))) == [old]
    assert list(rows_of(scored(pipeline, newest=1))) == [new, old]  # the reference is in use
    assert not any(name.startswith("earlier") for name in rows_of(scored(pipeline, earlier_test_sets=0))[new])
    with pytest.raises(dg.Failure, match="there is no model version 'none'"):
        scored(pipeline, versions=["none"])


def test_what_cannot_be_asked_is_said_and_stops_nothing(two):
    pipeline, old, new = two
    store = pipeline.store
    store.put(f"{old}/{ONNX}", b"damaged")
    for key in list(store.list_objects(f"{old}/")):
        if "predicted-" in key:
            store.delete_object(key)
    for key in list(store.list_objects("data/")):
        store.delete_object(key)
    result = scored(pipeline)
    assert list(rows_of(result)) == [new]
    assert check_results(result) == {"all_versions_scored": False}
    [evaluation] = result.get_asset_check_evaluations()
    assert f"{old}: model.onnx of {old} has SHA-256" in str(evaluation.description)
    assert f"test images of {old}: the images of digest" in str(evaluation.description)


def test_an_empty_store_has_nothing_to_score(pipeline):
    pipeline.run("raw_mnist_data", "processed_mnist_data")
    with pytest.raises(dg.Failure, match="no version can be scored: the store has none yet"):
        scored(pipeline)
