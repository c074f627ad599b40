"""The whole graph on real images, through Dagster."""

import base64

import dagster as dg
import numpy as np
import pyarrow.parquet as pq
import pytest
from dagster._core.definitions.observe import observe as observe_assets  # Dagster has no public name for it

from mnist_pipeline.defs.run_config import ConfigInvalid
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.stores.exports import ONNX
from mnist_pipeline.task.settings import NetworkSettings
from mnist_pipeline_tests.conftest import Pipeline, check_results, metadata
from mnist_pipeline_tests.live import CHAIN
from mnist_pipeline_tests.task.examples import TINY, png
from mnist_pipeline_tests.versions import save

DATA_VERSION_TAG = "dagster/data_version"
ASSETS = (*CHAIN, "digit_predictions")
FORCE = {"strategy": "force", "reason": "a test", "serve_check": "off"}
WORSE = {**TINY, "epochs": 1, "learning_rate": 1e-5, "seed": 7}


def data_versions(pipeline: Pipeline) -> dict[str, str]:
    events = {name: pipeline.instance.get_latest_materialization_event(dg.AssetKey(name)) for name in ASSETS}
    found = {name: event.asset_materialization for name, event in events.items() if event}
    return {
        name: (materialization.tags or {})[DATA_VERSION_TAG]
        for name, materialization in found.items()
        if materialization
    }


def test_everything_is_built_deployed_and_predicted(pipeline, small_dataset):
    result = pipeline.run()
    checks = check_results(result)
    assert {name for name, passed in checks.items() if not passed} == set()
    assert len(checks) == 14
    evaluation = metadata(result, "model_evaluation")
    deployed = pipeline.store.production()
    assert deployed.version == metadata(result, "digit_classifier")["model"] == evaluation["model"]
    assert deployed.test_accuracy == evaluation["test_accuracy"] > 0.3
    table = pq.read_table(metadata(result, "batch_digit_predictions")["predictions"])
    labels = small_dataset.test.labels
    assert table["model"].unique().to_pylist() == [deployed.version]
    assert (table["label"].to_numpy() == labels).mean() == pytest.approx(deployed.test_accuracy)
    predictions = result.output_for_node("digit_predictions").predictions
    assert len(predictions) == min(10, len(labels))
    assert {prediction.probabilities for prediction in predictions} == {None}


def test_every_check_carries_numbers_and_belongs_to_the_materialization_it_is_about(pipeline):
    """So that Dagster plots them over time, also those of checks that pass."""
    pipeline.run()
    again = pipeline.run(digit_classifier={**TINY, "seed": 3}, production_digit_classifier={"accuracy_threshold": 0.3})
    evaluations = again.get_asset_check_evaluations()
    assert len(evaluations) == 14
    for evaluation in evaluations:
        numbers = [v.value for v in evaluation.metadata.values() if isinstance(v.value, int | float)]
        assert numbers, evaluation.check_name
        target = evaluation.target_materialization_data
        assert target
        assert target.run_id == again.run_id, evaluation.check_name


def test_the_scores_are_those_of_the_reloaded_candidate(pipeline, small_dataset):
    evaluation = pipeline.run().output_for_node("model_evaluation")
    predicted = Predictor(*pipeline.store.load_onnx(evaluation.model.name)).predict(small_dataset.test.images).argmax(1)
    assert evaluation.test.accuracy == (predicted == small_dataset.test.labels).mean()


def test_the_candidate_is_scored_even_if_a_newer_version_is_in_the_store(pipeline, trained):
    first = pipeline.run().output_for_node("digit_classifier")
    newer = save(pipeline.store, trained, TrainingSettings(**TINY)).name
    assert pipeline.store.versions()[0] == newer
    assert pipeline.run("model_evaluation").output_for_node("model_evaluation").model.name == first.name


def test_twice_the_same_gives_the_same_and_another_seed_does_not(pipeline):
    scores = metadata(pipeline.run(), "model_evaluation")
    versions = data_versions(pipeline)
    assert set(versions) == set(ASSETS)
    again = pipeline.run()
    assert data_versions(pipeline) == versions
    assert metadata(again, "model_evaluation")["test_loss"] == scores["test_loss"]
    assert pipeline.store.decisions()[0].outcome == "unchanged"
    other = pipeline.run(digit_classifier={**TINY, "seed": 1})
    assert metadata(other, "model_evaluation")["test_loss"] != scores["test_loss"]
    changed = data_versions(pipeline)
    assert [name for name in ASSETS[:3] if changed[name] != versions[name]] == ["digit_classifier"]


def test_a_worse_candidate_is_refused_and_the_incumbent_predicts(pipeline):
    pipeline.run()
    incumbent = pipeline.store.production()
    result = pipeline.run(digit_classifier=WORSE, production_digit_classifier={"accuracy_threshold": 0.0})
    assert result.success
    assert check_results(result)["candidate_accepted"] is False
    assert pipeline.store.production() == incumbent
    refusal = pipeline.store.decisions()[0]
    assert refusal.outcome == "refused"
    assert refusal.version == metadata(result, "digit_classifier")["model"] != incumbent.version
    assert refusal.incumbent_test_accuracy == incumbent.test_accuracy
    assert "and it is worse" in refusal.reason
    assert metadata(result, "batch_digit_predictions")["model"] == incumbent.version
    assert result.output_for_node("digit_predictions").model == incumbent.version


@pytest.mark.parametrize(("method", "threshold", "outcome"), [("promote", 0.3, "promoted"), ("record", 1.0, "refused")])
def test_a_gate_that_is_cut_off_after_its_decision_does_not_decide_again(
    pipeline, monkeypatch, method, threshold, outcome
):
    decide, calls = getattr(type(pipeline.store), method), []

    def cut_off(self, decision, seen):
        decide(self, decision, seen)
        calls.append(decision)
        raise ConnectionError("the answer was lost")

    monkeypatch.setattr(type(pipeline.store), method, cut_off)
    result = pipeline.run(production_digit_classifier={"accuracy_threshold": threshold})
    [decision] = pipeline.store.decisions()
    assert [decision] == calls
    assert decision.outcome == outcome
    assert decision.actor == f"run {result.run_id}"
    assert check_results(result)["candidate_accepted"] is (outcome == "promoted")
    [told] = pipeline.instance.fetch_observations(dg.AssetKey("production_digit_classifier"), limit=10).records
    assert told.asset_observation.metadata["id"].value == decision.id


def test_where_nothing_was_ever_deployed_a_refusal_skips_predictions(pipeline):
    result = pipeline.run(production_digit_classifier={"accuracy_threshold": 1.0})
    assert result.success
    assert pipeline.store.production() is None
    assert [decision.outcome for decision in pipeline.store.decisions()] == ["refused"]
    assert check_results(result)["candidate_accepted"] is False
    materialized = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}
    assert materialized == set(ASSETS[:4])


def test_manual_deploys_the_version_that_is_named(pipeline):
    pipeline.run()
    older = pipeline.store.production()
    pipeline.run(digit_classifier={**TINY, "seed": 3}, production_digit_classifier=FORCE)
    assert pipeline.store.production().version != older.version
    result = pipeline.run(
        "production_digit_classifier",
        production_digit_classifier={"strategy": "manual", "model_name": older.version, "reason": "I know it"},
    )
    deployed = pipeline.store.production()
    assert (deployed.version, deployed.strategy, deployed.reason) == (older.version, "manual", "I know it")
    assert deployed.test_accuracy == older.test_accuracy
    assert result.output_for_node("production_digit_classifier") == deployed
    predicted = pipeline.run("batch_digit_predictions", "digit_predictions")
    assert metadata(predicted, "batch_digit_predictions")["model"] == older.version


def test_manual_without_a_name_deploys_nothing_and_shows_the_candidates(pipeline):
    result = pipeline.run(production_digit_classifier={"strategy": "manual"})
    [evaluation] = [e for e in result.get_asset_check_evaluations() if e.check_name == "candidate_accepted"]
    candidates = [record.data["version"] for record in evaluation.metadata["candidates"].records]
    assert candidates == pipeline.store.versions()
    assert not evaluation.passed
    assert pipeline.store.production() is None


def test_manual_with_an_unknown_name_fails_and_names_the_versions(pipeline):
    pipeline.run()
    deployed = pipeline.store.production()
    config = {"strategy": "manual", "model_name": f"mnist_{NetworkSettings.FAMILY}_20200101T000000.000Z_none"}
    with pytest.raises(dg.Failure, match=deployed.version):
        pipeline.run("production_digit_classifier", production_digit_classifier=config)
    assert pipeline.store.production() == deployed


def test_force_deploys_a_worse_candidate_with_its_reason(pipeline):
    pipeline.run()
    result = pipeline.run(digit_classifier=WORSE, production_digit_classifier=FORCE)
    deployed = pipeline.store.production()
    assert deployed.version == metadata(result, "digit_classifier")["model"]
    assert (deployed.strategy, deployed.reason) == ("force", "a test")
    assert deployed.test_accuracy < deployed.incumbent_test_accuracy


def test_what_was_rolled_back_stays_out_until_it_is_chosen_by_hand(pipeline):
    pipeline.run()
    first = pipeline.store.production()
    pipeline.run(digit_classifier={**TINY, "epochs": 4}, production_digit_classifier=FORCE)
    better = pipeline.store.production()
    pipeline.store.rollback("customers complain", "me")
    assert pipeline.store.production().version == first.version
    pipeline.run("production_digit_classifier", production_digit_classifier={"accuracy_threshold": 0.0})
    assert pipeline.store.production().version == first.version
    assert "customers complain" in pipeline.store.decisions()[0].reason
    pipeline.run(
        "production_digit_classifier",
        production_digit_classifier={"strategy": "manual", "model_name": better.version},
    )
    outcomes = [(d.strategy, d.outcome, d.version) for d in pipeline.store.decisions()]
    assert outcomes == [
        ("manual", "promoted", better.version),
        ("quality", "refused", better.version),
        ("rollback", "promoted", first.version),
        ("force", "promoted", better.version),
        ("quality", "promoted", first.version),
    ]


def test_a_deployed_model_that_is_damaged_stops_predictions(pipeline):
    pipeline.run()
    store, version = pipeline.store, pipeline.store.production().version
    data, token = store.read_object(f"{version}/{ONNX}")
    store.replace_object(f"{version}/{ONNX}", data[:-1] + bytes([data[-1] ^ 1]), token)
    with pytest.raises(dg.Failure, match="SHA-256"):
        pipeline.run("batch_digit_predictions")
    forget_labels(store, version)
    result = pipeline.run(digit_classifier={**TINY, "seed": 5}, raise_on_error=False)
    assert not result.success
    assert "SHA-256" in result.failure_data_for_node("production_digit_classifier").error.message


def forget_labels(store, version: str) -> None:
    """So that it has to predict again."""
    for key in list(store.list_objects(f"{version}/")):
        if key.endswith(".labels"):
            store.delete_object(key)


@pytest.mark.parametrize(("strategy", "works"), [({}, False), (FORCE, True)], ids=["quality", "force"])
def test_a_damaged_incumbent_can_be_replaced_but_not_compared_with(pipeline, strategy, works):
    pipeline.run()
    damaged = pipeline.store.production().version
    pipeline.store.delete_object(f"{damaged}/{ONNX}")
    forget_labels(pipeline.store, damaged)
    gate = strategy or {"accuracy_threshold": 0.3}
    result = pipeline.run(digit_classifier={**TINY, "seed": 2}, production_digit_classifier=gate, raise_on_error=False)
    assert result.success is works
    assert (pipeline.store.production().version != damaged) is works
    if not works:
        assert "deploy with 'manual' or 'force'" in str(result.failure_data_for_node("production_digit_classifier"))


def test_a_damaged_incumbent_is_compared_with_by_the_labels_that_are_kept(pipeline):
    pipeline.run()
    damaged = pipeline.store.production().version
    pipeline.store.delete_object(f"{damaged}/{ONNX}")
    gate = {"accuracy_threshold": 0.3, "max_regression": 1.0, "max_slice_regression": 1.0}
    assert pipeline.run(digit_classifier={**TINY, "seed": 2}, production_digit_classifier=gate).success
    decision = pipeline.store.production()
    assert (decision.incumbent_version, decision.comparisons[0].version) == (damaged, damaged)


def test_labelled_digits_join_the_training_split_only(pipeline, small_dataset, tmp_path):
    before = pipeline.run("raw_mnist_data", "processed_mnist_data").output_for_node("processed_mnist_data")
    folder = tmp_path / "storage" / "labelled"
    for label in (1, 2):
        (folder / str(label)).mkdir(parents=True)
    for number, image in enumerate(small_dataset.test.images[::10]):  # of each class two, on white paper
        (folder / "1" / f"{number}.png").write_bytes(png(255 - image.repeat(3, 0).repeat(3, 1)))
    (folder / "2" / "broken.png").write_bytes(b"not a picture")
    (folder / "stray.png").write_bytes(b"")
    result = pipeline.run("processed_mnist_data")
    after = result.output_for_node("processed_mnist_data")
    told = metadata(result, "processed_mnist_data")
    assert len(after.train.labels) == len(before.train.labels) + told["labelled_digits_joined"]
    assert len(after.held_out.labels) == told["labelled_digits_held_out"] == 20 - told["labelled_digits_joined"]
    assert 1 <= len(after.held_out.labels) <= 9
    assert set(after.held_out.labels) == {after.train.labels[-1]} == {1}
    assert check_results(result)["nothing_lost"] and check_results(result)["no_leakage"]
    assert [row.data for row in told["classes"].records][1]["held_out"] == len(after.held_out.labels)
    assert np.array_equal(after.validation.images, before.validation.images)
    assert np.array_equal(after.test.images, before.test.images)
    skipped = [record.data["file"] for record in told["skipped_files"].records]
    assert sorted(skipped) == ["2/broken.png", "stray.png"]


def test_a_test_image_among_the_labelled_digits_does_not_train(pipeline, small_dataset, tmp_path):
    before = pipeline.run("raw_mnist_data", "processed_mnist_data").output_for_node("processed_mnist_data")
    folder = tmp_path / "storage" / "labelled" / "0"
    folder.mkdir(parents=True)
    (folder / "leak.png").write_bytes(png(small_dataset.test.images[0]))
    result = pipeline.run("processed_mnist_data")
    told, after = metadata(result, "processed_mnist_data"), result.output_for_node("processed_mnist_data")
    assert (told["labelled_digits_of_test_images"], told["labelled_digits_joined"]) == (1, 0)
    assert len(after.held_out.labels) == 0
    assert np.array_equal(after.train.labels, before.train.labels)
    assert np.array_equal(after.test.labels, before.test.labels)
    checks = check_results(result)
    assert checks["no_leakage"] and checks["nothing_lost"]


def test_labelled_digits_are_observed_by_content(pipeline, tmp_path):
    source = next(a for a in pipeline.defs.assets if a.key == dg.AssetKey("labelled_digits"))

    def observe() -> str:
        result = observe_assets([source], instance=pipeline.instance, resources=pipeline.defs.resources)
        [event] = result.get_asset_observation_events()
        return event.asset_observation_data.asset_observation.tags[DATA_VERSION_TAG]

    folder = tmp_path / "storage" / "labelled" / "1"
    empty = observe()
    folder.mkdir(parents=True)
    assert observe() == empty
    (folder / "a.png").write_bytes(b"1")
    one = observe()
    assert one != empty
    (folder / "a.png").write_bytes(b"2")
    assert observe() not in (one, empty)


def test_predictions_for_images_given_in_the_configuration(pipeline, small_dataset, tmp_path):
    pipeline.run()
    path = tmp_path / "digit.png"
    path.write_bytes(png(small_dataset.test.images[5]))
    text = base64.b64encode(png(small_dataset.test.images[6])).decode()
    config = {
        "image_paths": [str(path)],
        "images_base64": [text],
        "include_probabilities": True,
        "confidence_threshold": 1.0,
    }
    record = pipeline.run("digit_predictions", digit_predictions=config).output_for_node("digit_predictions")
    expected = Predictor.from_store(pipeline.store).predict(small_dataset.test.images[5:7])
    assert [p.source for p in record.predictions] == [str(path), "images_base64[0]"]
    assert np.allclose([p.probabilities for p in record.predictions], expected, atol=1e-5)
    assert all(p.needs_review for p in record.predictions)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_paths": ["/no/such.png"]}, "image_paths that do not exist: /no/such.png"),
        ({"image_paths": ["/tmp"]}, "/tmp of image_paths cannot be read as a file: /tmp is not a regular file"),
        ({"images_base64": ["\u00e9"]}, r"images_base64\[0\] is not base64"),
        ({"images_base64": ["?"]}, r"images_base64\[0\] is not base64"),
        ({"images_base64": [base64.b64encode(b"text").decode()]}, r"images_base64\[0\]: not an image"),
        ({"images_base64": [base64.b64encode(png(np.zeros((50, 50), np.uint8))).decode()]}, "blank"),
    ],
)
def test_images_that_cannot_be_predicted_fail_with_their_name(pipeline, config, message):
    pipeline.run()
    with pytest.raises(dg.Failure, match=message):
        pipeline.run("digit_predictions", digit_predictions=config)


def test_batch_predictions_of_files_and_folders(pipeline, small_dataset, tmp_path):
    pipeline.run()
    folder = tmp_path / "scans"
    folder.mkdir()
    for index in range(5):
        (folder / f"{index}.png").write_bytes(png(small_dataset.test.images[index]))
    (folder / "broken.png").write_bytes(b"broken")
    np.save(folder / "more.npy", small_dataset.test.images[5:12])
    result = pipeline.run(
        "batch_digit_predictions", batch_digit_predictions={"input_paths": [str(folder)], "batch_size": 3}
    )
    record = result.output_for_node("batch_digit_predictions")
    assert (record.images, record.errors) == (12, 1)
    rows = pq.read_table(record.path).to_pylist()
    expected = Predictor.from_store(pipeline.store).predict(small_dataset.test.images[:12]).argmax(1).tolist()
    by_place = {(row["source"], row["index"]): row["label"] for row in rows}
    places = [(str(folder / f"{i}.png"), 0) for i in range(5)] + [(str(folder / "more.npy"), i) for i in range(7)]
    assert [by_place[place] for place in places] == expected
    [error] = pq.read_table(record.errors_path).to_pylist()
    assert error["source"].endswith("broken.png")
    assert check_results(result)["batch_predictions_are_sane"]


def test_batch_predictions_of_nothing_readable_fail_their_check(pipeline, tmp_path):
    pipeline.run()
    (tmp_path / "broken.png").write_bytes(b"broken")
    result = pipeline.run(
        "batch_digit_predictions", batch_digit_predictions={"input_paths": [str(tmp_path / "broken.png")]}
    )
    assert check_results(result) == {"batch_predictions_are_sane": False, "no_drift": False}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"digit_classifier": {"learning_rat": 0.1}}, ["learning_rat", "unexpected"]),
        ({"digit_classifier": {"optimizer": "adma"}}, ["optimizer", "adma", "ADAMW"]),
        (
            {"production_digit_classifier": {"accuracy_threshold": 1.2}},
            ["production_digit_classifier.accuracy_threshold", "less than or equal to 1"],
        ),
        ({"digit_classifier": {"optimizer": "adam", "momentum": 0.9}}, ["momentum", "optimizer='sgd'"]),
        ({"production_digit_classifier": {"strategy": "force"}}, ["'force' needs a reason"]),
    ],
    ids=["unknown", "misspelt", "above one", "would be ignored", "no reason"],
)
def test_a_bad_configuration_stops_the_run_before_any_work(pipeline, config, words):
    with pytest.raises((ConfigInvalid, dg.DagsterInvalidConfigError)) as error:
        pipeline.run(**config)
    message = str(error.value).lower()
    assert [word for word in words if word.lower() not in message] == []
    assert data_versions(pipeline) == {}


def test_a_setting_can_come_from_the_environment(pipeline, monkeypatch):
    config = TINY | {"epochs": {"env": "EPOCHS"}, "hidden_units": [{"env": "UNITS"}]}
    monkeypatch.setenv("UNITS", "32")
    monkeypatch.setenv("EPOCHS", "0")
    with pytest.raises(ConfigInvalid, match=r"digit_classifier\.epochs: .*greater than or equal to 1"):
        pipeline.run(digit_classifier=config)
    monkeypatch.setenv("EPOCHS", "1")
    result = pipeline.run("raw_mnist_data", "processed_mnist_data", "digit_classifier", digit_classifier=config)
    assert metadata(result, "digit_classifier")["epochs"] == 1
