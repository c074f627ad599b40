"""Batch predictions in parts: the same as in one go, each part by itself."""

import os
from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnist_pipeline.definitions import load_assets
from mnist_pipeline.defs.batch_parts import PART_COMPUTE
from mnist_pipeline.defs.engines.compute import Compute
from mnist_pipeline.ml import parts
from mnist_pipeline.ml.records import BatchPredictions
from mnist_pipeline_tests.conftest import Pipeline, check_results, metadata

BATCH = "batch_digit_predictions"
KEY = dg.AssetKey(BATCH)
PARTS = 3


@pytest.fixture
def inbox(tmp_path, small_dataset) -> Path:
    """Files of all kinds, an unreadable one of each, and arrays of more than one batch."""
    folder = tmp_path / "in"
    folder.mkdir()
    test = small_dataset.test.images
    np.save(folder / "a.npy", test[:70])
    np.savez(folder / "b.npz", first=test[70:90], second=test[90:101])
    for number in range(7):
        Image.fromarray(test[101 + number]).save(folder / f"c{number}.png")
    (folder / "d.png").write_bytes(b"broken")
    (folder / "e.npy").write_bytes(b"broken")
    return folder


@pytest.fixture
def whole(environment, instance, inbox) -> Pipeline:
    """One step, and a model."""
    pipeline = Pipeline(environment.model_copy(update={"prediction_input": str(inbox)}), instance)
    pipeline.run()
    return pipeline


@pytest.fixture
def divided(whole) -> Pipeline:
    """The same deployment with several steps."""
    return Pipeline(whole.environment.model_copy(update={"prediction_parts": PARTS}), whole.instance)


def rows(record: BatchPredictions) -> set[tuple]:
    table = pq.read_table(record.path)
    assert table.num_rows == record.images
    return {tuple(row.values()) for row in table.to_pylist()}


def errors(record: BatchPredictions) -> set[str]:
    table = pq.read_table(record.errors_path)
    assert table.num_rows == record.errors
    return set(table["source"].to_pylist())


def test_parts_give_what_one_step_gives(whole, divided, inbox):
    config = {"batch_size": 8, "review_images": 4}
    # Without a record the parts know nothing of the step before.
    one = whole.run(BATCH, batch_digit_predictions=config)
    for file in Path(one.output_for_node(BATCH).path).parent.glob("*.json"):
        file.unlink()
    result = divided.run(BATCH, batch_digit_predictions=config)
    record, of_one = result.output_for_node(BATCH), one.output_for_node(BATCH)
    assert rows(record) == rows(of_one)
    assert errors(record) == errors(of_one) == {str(inbox / "d.png"), str(inbox / "e.npy")}
    assert [file.name for file in sorted(Path(record.path).iterdir())] == [
        f"part-0000{n}.parquet" for n in range(PARTS)
    ]
    assert all(pq.read_metadata(file).num_rows for file in Path(record.path).iterdir())
    same = {"path", "errors_path", "parts", "mean_confidence", "unreadable"}
    assert record.model_dump(exclude=same) == of_one.model_dump(exclude=same)
    assert record.mean_confidence == pytest.approx(of_one.mean_confidence, rel=1e-12)
    assert {error.source for error in record.unreadable} == errors(record)
    assert check_results(result) == check_results(one)
    for told in ("to_review", "images", "drifted", "errors"):
        assert metadata(result, BATCH).get(told) == metadata(one, BATCH).get(told)
    assert metadata(divided.run(BATCH, batch_digit_predictions=config), BATCH)["predicted_before"]


def test_what_is_to_be_looked_at_is_the_most_doubtful_of_all_parts(whole, divided, spec):
    def reviewed(pipeline: Pipeline, **config) -> set[str]:
        for folder in ("review", "predictions"):
            for file in (Path(pipeline.environment.storage_root) / folder).rglob("*"):
                if file.is_file():
                    file.unlink()
        pipeline.run(BATCH, batch_digit_predictions=config)
        resources = pipeline.defs.resources or {}
        return {item.id for item in resources["review_dir"].queue().items(spec.array_shape)}

    config = {"review_images": 3, "confidence_threshold": 1.0}
    found = reviewed(divided, **config)
    assert len(found) >= 3
    assert reviewed(whole, **config) == found


def test_a_part_that_fails_is_done_again_alone(divided, monkeypatch):
    """What it had written does not count, and the other parts are not predicted again."""
    done: list[int] = []
    predict = parts.predict_to_parquet

    def fails_once(predictor, batches, table, error_table, doubtful):
        done.append(number := len(done))
        result = predict(predictor, batches, table, error_table, doubtful)
        if number == 1:
            raise OSError("the disk is full")
        return result

    monkeypatch.setattr(parts, "predict_to_parquet", fails_once)
    result = divided.run(BATCH)
    assert result.success
    assert len(done) == PARTS + 1
    retried = [event.step_key for event in result.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"]
    assert len(retried) == 1
    assert retried[0].startswith(f"{BATCH}.predict_part_")
    assert rows(result.output_for_node(BATCH))


def test_parts_of_other_settings_are_not_mixed(divided):
    """Another size of batches divides arrays in another way."""
    first = divided.run(BATCH, batch_digit_predictions={"batch_size": 8}).output_for_node(BATCH)
    for file in Path(first.path).parent.glob("*.json"):
        file.unlink()
    second = divided.run(BATCH, batch_digit_predictions={"batch_size": 16}).output_for_node(BATCH)
    assert second.path != first.path
    assert rows(second) == rows(first)


def test_a_part_that_lost_its_file_is_predicted_again(divided):
    """Old tables are deleted by people who leave the rest."""
    for file in (Path(divided.environment.storage_root) / "predictions").glob("*.json"):
        file.unlink()  # of the one step before
    first = divided.run(BATCH).output_for_node(BATCH)
    (Path(first.path) / "part-00001.parquet").unlink()
    again = divided.run(BATCH)
    assert again.success
    assert rows(again.output_for_node(BATCH))


def test_other_content_of_the_same_size_and_time_is_predicted_anew(divided, inbox, small_dataset):
    """As an archive makes it that is unpacked with its times."""
    first = divided.run(BATCH).output_for_node(BATCH)
    times = (inbox / "a.npy").stat()
    np.save(inbox / "a.npy", small_dataset.test.images[200:270])
    os.utime(inbox / "a.npy", ns=(times.st_atime_ns, times.st_mtime_ns))
    second = divided.run(BATCH).output_for_node(BATCH)
    assert second.inputs_digest != first.inputs_digest
    assert second.label_counts != first.label_counts


def test_inputs_that_change_are_predicted_anew(divided, inbox, small_dataset):
    first = divided.run(BATCH).output_for_node(BATCH)
    np.save(inbox / "f.npy", small_dataset.test.images[:5])
    second = divided.run(BATCH).output_for_node(BATCH)
    assert second.images == first.images + 5
    assert second.path != first.path


def test_more_parts_than_inputs_and_no_inputs(divided, inbox, small_dataset):
    for file in inbox.iterdir():
        file.unlink()
    result = divided.run(BATCH)
    assert result.success
    assert result.asset_materializations_for_node(BATCH) == []
    np.save(inbox / "one.npy", small_dataset.test.images[:1])
    result = divided.run(BATCH)
    assert result.output_for_node(BATCH).images == 1
    assert check_results(result)["batch_predictions_are_sane"]


def test_the_asset_is_the_same_in_parts(environment):
    """Configuration, inputs, checks, conditions, freshness: only its steps are others."""
    one, several = (
        next(
            asset
            for asset in load_assets(environment.model_copy(update={"prediction_parts": n}))[0]
            if asset.key == KEY
        )
        for n in (1, PARTS)
    )
    for name in (
        "deps",
        "automation_condition",
        "freshness_policy",
        "code_version",
        "group_name",
        "kinds",
        "description",
    ):
        assert getattr(several.get_asset_spec(KEY), name) == getattr(one.get_asset_spec(KEY), name), name
    assert {*several.check_keys} == {*one.check_keys}
    graph = several.node_def
    assert isinstance(graph, dg.GraphDefinition)
    computes = {node.name: Compute.of(node.tags) for node in graph.node_defs}
    assert computes == {f"predict_part_{n}": PART_COMPUTE for n in range(PARTS)} | {"gather_predictions": None}


def test_a_wrong_setting_is_refused_before_the_run(divided):
    with pytest.raises(Exception, match="batch_size"):
        divided.run(BATCH, batch_digit_predictions={"batch_size": 0})
