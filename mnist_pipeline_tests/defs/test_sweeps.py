"""Sweeps on the real graph: trials as partitions, the leaderboard, the best one at the gate."""

import json
from typing import Any

import dagster as dg
import pytest

from mnist_pipeline.__main__ import main
from mnist_pipeline.defs.assets.trial import TRIALS_NAME
from mnist_pipeline.defs.sweeping import PARTITION_TAG, due_trials, sweep_sensor
from mnist_pipeline.experiments.candidate import take_candidate
from mnist_pipeline.experiments.reproducing import reproduce
from mnist_pipeline.experiments.sweep import Sweep, parse_sweep
from mnist_pipeline.experiments.trials import Sweeps
from mnist_pipeline.experiments.trying import run_trial
from mnist_pipeline.ml.data import data_version
from mnist_pipeline.ml.training import TrainingDiverged, train
from mnist_pipeline.stores import UnknownModel
from mnist_pipeline.stores.objects import EXPERIMENTS
from mnist_pipeline_tests.conftest import Pipeline, check_results, metadata
from mnist_pipeline_tests.task.examples import TINY

BATCHES = {"batch_size": {"choices": [16, 64]}}
SHARED = {name: value for name, value in TINY.items() if name != "batch_size"}


def a_sweep(**fields: Any) -> Sweep:
    given = {"name": "some", "method": "grid", "baseline": False, "settings": SHARED, "space": BATCHES} | fields
    return parse_sweep(given, "the test")


@pytest.fixture
def ready(pipeline: Pipeline) -> Pipeline:
    """There is data."""
    pipeline.run("raw_mnist_data", "processed_mnist_data")
    return pipeline


@pytest.fixture
def sweeps(ready: Pipeline) -> Sweeps:
    return Sweeps(ready.store)


def try_trial(pipeline: Pipeline, name: str, **options: Any) -> dg.ExecuteInProcessResult:
    pipeline.instance.add_dynamic_partitions(TRIALS_NAME, [name])
    job = pipeline.defs.resolve_job_def("trial_job")
    return job.execute_in_process(instance=pipeline.instance, partition_key=name, **options)


def execute(pipeline: Pipeline, job: str, **config: Any) -> dg.ExecuteInProcessResult:
    steps = {step: {"config": values} for step, values in config.items()}
    found = pipeline.defs.resolve_job_def(job)
    return found.execute_in_process(instance=pipeline.instance, run_config={"ops": steps} if steps else None)


def splits_of(pipeline: Pipeline) -> Any:
    return pipeline.defs.load_asset_value(dg.AssetKey("processed_mnist_data"), instance=pipeline.instance)


def test_a_sweep_from_the_ui_to_the_gate(ready, sweeps):
    store, instance = ready.store, ready.instance
    config = {"name": "some", "method": "grid", "baseline": False, "settings": SHARED, "space": BATCHES}
    assert execute(ready, "sweep_job", start_sweep=config).success
    names = [*due_trials(instance, sweeps), "some/002-s0"]
    assert names == ["some/001-s0", "some/002-s0"]  # the pool has room for one
    for name in names:
        result = try_trial(ready, name)
        assert check_results(result) == {"trial_is_stored": True}
        shown = metadata(result, "trial")
        assert shown["sweep"] == "some"
        assert shown["settings"]["batch_size"] == {"some/001-s0": 16, "some/002-s0": 64}[name]
    record = sweeps.read("some")
    assert record.is_complete
    for trial in record.trials:
        manifest, files = sweeps.models("some").verify(trial.version)
        assert manifest.training.trial == record.name_of(trial)
        assert manifest.training.best("validation_accuracy") == trial.validation_accuracy
        assert trial.weights_bytes == len(files["weights.safetensors"])
    assert store.versions() == []  # out of sight

    ranking = execute(ready, "leaderboard_job")
    assert check_results(ranking) == {"all_trials_ranked": True}
    shown = metadata(ranking, "leaderboard")
    best = max(record.trials, key=lambda trial: (trial.validation_accuracy, -(trial.validation_loss or 0)))
    assert shown["best"] == record.name_of(best)
    assert shown["validation_accuracy"] == best.validation_accuracy
    rows = [row.data for row in shown["leaderboard"].records]
    assert [row["rank"] for row in rows] == [1, 2]
    assert {row["batch_size"] for row in rows} == {"16", "64"}
    assert "test_accuracy" not in json.dumps(str(shown))

    gate = {"accuracy_threshold": 0.3, "max_slice_regression": 1.0, "serve_check": "off"}
    sent = execute(ready, "candidate_job", digit_classifier={"trial": "newest"}, production_digit_classifier=gate)
    assert metadata(sent, "digit_classifier")["trial"] == shown["best"]
    [decision] = list(store.decisions())
    assert (decision.outcome, decision.version) == ("promoted", best.version)
    assert store.versions() == [best.version]
    store.verify(best.version)
    # The trials are not needed any more.
    sweeps.delete("some")
    assert store.production().version == best.version
    assert list(store.list_objects(EXPERIMENTS)) == []
    store.verify(best.version)


def test_a_trial_that_is_done_is_not_trained_again(ready, sweeps, monkeypatch):
    sweeps.begin(a_sweep())
    try_trial(ready, "some/001-s0")
    monkeypatch.setattr("mnist_pipeline.experiments.trying.train", None)
    assert try_trial(ready, "some/001-s0").success
    assert len(sweeps.models("some").versions()) == 1


def test_a_trial_killed_after_an_epoch_goes_on_and_one_killed_after_it_was_saved_is_adopted(
    ready, sweeps, tmp_path, monkeypatch
):
    splits, seen = splits_of(ready), []
    sweeps.begin(a_sweep(settings=SHARED | {"epochs": 3}))

    class Killed(BaseException):
        pass

    def killed_after_two(metrics):
        seen.append(metrics.epoch)
        if seen == [1, 2]:
            raise Killed

    with pytest.raises(Killed):
        run_trial(sweeps, "some/001-s0", splits, tmp_path, lambda _: killed_after_two, "run")
    with monkeypatch.context() as patch, pytest.raises(Killed):

        def killed(*_: Any) -> None:
            raise Killed

        patch.setattr(Sweeps, "record", killed)
        run_trial(sweeps, "some/001-s0", splits, tmp_path, lambda _: killed_after_two, "run")
    assert seen == [1, 2, 3]
    assert len(sweeps.models("some").versions()) == 1
    assert not sweeps.chosen("some/001-s0").trial.is_done
    done = run_trial(sweeps, "some/001-s0", splits, tmp_path, lambda _: killed_after_two, "run")
    assert seen == [1, 2, 3]
    assert [done.version] == sweeps.models("some").versions()
    # It is the same as if nothing had happened.
    manifest = sweeps.models("some").manifest(done.version)
    settings = sweeps.read("some").sweep.training_settings(done.values, done.seed)
    whole = train(settings, splits)
    assert sweeps.models("some").load(done.version)[1] == whole.weights
    assert manifest.training.best("validation_accuracy") == done.validation_accuracy


def test_all_trials_of_a_sweep_see_the_images_that_it_began_with(ready, sweeps, tmp_path):
    splits = splits_of(ready)
    sweeps.begin(a_sweep())
    run_trial(sweeps, "some/001-s0", splits, tmp_path, lambda _: lambda _: None, "run")
    others = splits._replace(train=type(splits.train)(splits.train.images[:300], splits.train.labels[:300]))
    done = run_trial(sweeps, "some/002-s0", others, tmp_path, lambda _: lambda _: None, "run")
    manifest = sweeps.models("some").manifest(done.version)
    assert manifest.training.data_version == data_version(splits.spec, *splits.parts.values())
    # A candidate of other images than there are now would not be compared fairly.
    ready.run("processed_mnist_data", processed_mnist_data={"validation_fraction": 0.3})
    with pytest.raises(dg.Failure, match="was trained on other train, validation images than there are now"):
        execute(ready, "candidate_job", digit_classifier={"trial": "some/002-s0"})
    assert ready.store.versions() == []


def test_a_trial_that_diverges_or_cannot_be_trained_is_a_result(ready, sweeps, monkeypatch):
    monkeypatch.setattr("mnist_pipeline.experiments.trying.train", diverging)
    sweeps.begin(a_sweep())
    result = try_trial(ready, "some/001-s0")
    assert metadata(result, "trial")["problem"] == "the training loss is nan in epoch 1"
    assert check_results(result) == {"trial_is_stored": False}
    monkeypatch.undo()
    sweeps.begin(a_sweep(name="other", space={"conv_depths": {"choices": [[12, 1, 1]]}}))
    result = try_trial(ready, "other/001-s0")
    assert "too many convolutions" in metadata(result, "trial")["problem"]
    assert check_results(result) == {"trial_is_stored": False}
    assert sweeps.read("other").is_complete
    with pytest.raises(dg.Failure, match="no trial of the sweep other has succeeded: the first says: conv_depths"):
        execute(ready, "leaderboard_job", leaderboard={"sweep": "other"})


def diverging(*_: Any) -> None:
    raise TrainingDiverged("the training loss is nan in epoch 1")


def runs_with(instance: dg.DagsterInstance, status: dg.DagsterRunStatus, **fields: Any) -> dg.DagsterRun:
    given: dict[str, Any] = {"job_name": "trial_job", "status": status, **fields}
    return instance.add_run(dg.DagsterRun(**given))


def test_none_is_due_while_a_training_of_the_main_graph_waits(ready, sweeps):
    instance = ready.instance
    sweeps.begin(a_sweep())
    key = frozenset({dg.AssetKey("digit_classifier")})
    assert due_trials(instance, sweeps) == ["some/001-s0"]
    for number, (status, selection, job) in enumerate(
        [
            (dg.DagsterRunStatus.STARTING, None, "training_job"),
            (dg.DagsterRunStatus.STARTED, None, "full_pipeline_job"),
            (dg.DagsterRunStatus.STARTED, key, "__ASSET_JOB"),
        ]
    ):
        run = runs_with(instance, status, run_id=f"main{number}", job_name=job, asset_selection=selection)
        assert due_trials(instance, sweeps) == []
        instance.delete_run(run.run_id)
    for number, (status, selection, job) in enumerate(
        [
            (dg.DagsterRunStatus.STARTED, None, "inference_job"),
            (dg.DagsterRunStatus.STARTED, frozenset({dg.AssetKey("raw_mnist_data")}), "training_job"),
            (dg.DagsterRunStatus.FAILURE, None, "training_job"),
        ]
    ):
        runs_with(instance, status, run_id=f"other{number}", job_name=job, asset_selection=selection)
    assert due_trials(instance, sweeps) == ["some/001-s0"]


def test_the_pool_bounds_how_many_are_at_work(ready, sweeps):
    instance = ready.instance
    sweeps.begin(a_sweep(space={"batch_size": {"choices": [16, 32, 64, 128]}}))
    sweeps.begin(a_sweep(name="z"))
    instance.event_log_storage.set_concurrency_slots("trials", 3)
    assert due_trials(instance, sweeps) == [f"some/00{number}-s0" for number in (1, 2, 3)]
    runs_with(instance, dg.DagsterRunStatus.STARTED, run_id="a", tags={PARTITION_TAG: "some/001-s0"})
    runs_with(instance, dg.DagsterRunStatus.STARTING, run_id="b", tags={PARTITION_TAG: "some/003-s0"})
    assert due_trials(instance, sweeps) == ["some/002-s0"]
    instance.event_log_storage.set_concurrency_slots("trials", 9)
    assert due_trials(instance, sweeps) == ["some/002-s0", "some/004-s0", "z/001-s0", "z/002-s0"]


def test_a_trial_whose_runs_fail_again_and_again_is_given_up_and_can_be_run_by_hand(ready, sweeps):
    instance = ready.instance
    sweeps.begin(a_sweep())
    for number in range(3):
        assert due_trials(instance, sweeps)[0] == "some/001-s0"
        status = dg.DagsterRunStatus.CANCELED if number else dg.DagsterRunStatus.FAILURE
        runs_with(instance, status, run_id=f"failed{number}", tags={PARTITION_TAG: "some/001-s0"})
    assert due_trials(instance, sweeps) == ["some/002-s0"]
    assert (
        "given up after 3 runs without a result; the last, failed2: its process was lost"
        in sweeps.read("some").trials[0].problem
    )
    try_trial(ready, "some/001-s0")
    trial = sweeps.read("some").trials[0]
    assert trial.version is not None and trial.problem is None


def test_the_sensor_asks_for_what_is_due_and_for_the_ranking_at_the_end(ready, sweeps):
    def tick() -> Any:
        with dg.build_sensor_context(instance=ready.instance, resources={"model_store": ready.store}) as context:
            return sweep_sensor(True, 30)(context)

    assert tick().skip_message == "no trial is due"
    sweeps.begin(a_sweep())
    begun = sweeps.read("some").started_at
    for name in ("some/001-s0", "some/002-s0"):
        found = tick()
        [request] = found.run_requests
        assert (request.partition_key, request.run_key) == (name, f"{name} {begun:%Y%m%dT%H%M%S} 0")
        assert request.tags["dagster/priority"] == "-1"
        [added] = found.dynamic_partitions_requests
        assert added.partition_keys == [name]
        try_trial(ready, name)
    found = tick()
    [request] = found.run_requests
    assert request.asset_selection == [dg.AssetKey("leaderboard")]
    assert request.run_config["ops"]["leaderboard"]["config"] == {"sweep": "some"}
    assert tick().skip_message == "no trial is due"


def test_what_is_no_sweep_is_refused_in_the_ui_with_a_sentence(ready):
    with pytest.raises(dg.Failure, match="the configuration: space: there is no setting 'rate'"):
        execute(ready, "sweep_job", start_sweep={"name": "x", "configurations": 3, "space": {"rate": {"choices": [1]}}})
    with pytest.raises(dg.Failure, match="there is no sweep yet"):
        execute(ready, "leaderboard_job")
    with pytest.raises(dg.Failure, match="there is no sweep 'none'"):
        execute(ready, "candidate_job", digit_classifier={"trial": "none"})


def test_runs_of_a_deleted_sweep_of_the_same_name_do_not_count(ready, sweeps):
    instance = ready.instance
    for number in range(3):
        status = dg.DagsterRunStatus.FAILURE
        runs_with(instance, status, run_id=f"before{number}", tags={PARTITION_TAG: "some/001-s0"})
    sweeps.begin(a_sweep())
    assert due_trials(instance, sweeps) == ["some/001-s0"]


def test_a_trial_takes_no_version_of_a_deleted_sweep_of_the_same_name(ready, sweeps, tmp_path):
    splits = splits_of(ready)
    sweeps.begin(a_sweep())
    first = run_trial(sweeps, "some/001-s0", splits, tmp_path, lambda _: lambda _: None, "run")
    sweeps.close("some")
    left = {key: ready.store.read_object(key)[0] for key in ready.store.list_objects(f"{EXPERIMENTS}some/")}
    sweeps.delete("some")
    for key, content in left.items():  # as a run that was at work leaves it
        if not key.endswith("sweep.json"):
            ready.store.put(key, content)
    sweeps.begin(a_sweep(settings=SHARED | {"epochs": 1}))
    again = run_trial(sweeps, "some/001-s0", splits, tmp_path, lambda _: lambda _: None, "run")
    assert again.version != first.version
    assert (first.epochs, again.epochs) == (2, 1)


def test_one_damaged_sweep_does_not_hold_up_the_others(ready, sweeps):
    ready.store.put(f"{EXPERIMENTS}.open/gone", b"")
    ready.store.put(f"{EXPERIMENTS}.open/damaged", b"")
    ready.store.put(f"{EXPERIMENTS}damaged/sweep.json", b"{}")
    sweeps.begin(a_sweep())
    assert due_trials(ready.instance, sweeps) == ["some/001-s0"]
    assert sweeps.open() == ["damaged", "some"]


def test_a_pool_of_none_pauses_all_sweeps(ready, sweeps):
    sweeps.begin(a_sweep())
    ready.instance.event_log_storage.set_concurrency_slots("trials", 0)
    assert due_trials(ready.instance, sweeps) == []


def test_more_held_out_labels_are_no_reason_against_a_candidate_and_prune_lets_it_be(ready, sweeps, tmp_path):
    splits = splits_of(ready)
    sweeps.begin(a_sweep())
    done = run_trial(sweeps, "some/001-s0", splits, tmp_path, lambda _: lambda _: None, "run")
    for seed in range(2):  # two versions that are newer by their names
        ready.run("digit_classifier", digit_classifier=TINY | {"seed": seed})
    more = splits._replace(held_out=type(splits.test)(splits.test.images[:5], splits.test.labels[:5]))
    taken = take_candidate(ready.store, "some/001-s0", more)
    assert taken.name == done.version
    pruned = ready.store.prune(keep=1)
    assert len(pruned.versions) == 2
    assert ready.store.versions() == [taken.name]


def test_a_trial_whose_sweep_is_deleted_meanwhile_leaves_nothing(ready, sweeps, tmp_path):
    splits = splits_of(ready)
    sweeps.begin(a_sweep())

    def delete_it(_: Any) -> None:
        sweeps.close("some")
        ready.store.delete_object(f"{EXPERIMENTS}some/sweep.json")

    with pytest.raises(UnknownModel):
        run_trial(sweeps, "some/001-s0", splits, tmp_path, lambda _: delete_it, "run")
    assert sweeps.models("some").versions() == []
    assert sweeps.has_left("some")  # splits.json
    sweeps.delete("some")
    assert not sweeps.has_left("some")


def test_a_candidate_has_its_images_in_the_store(ready, sweeps, tmp_path):
    splits = splits_of(ready)
    sweeps.begin(a_sweep())
    run_trial(sweeps, "some/001-s0", splits, tmp_path, lambda _: lambda _: None, "run")
    for key in list(ready.store.list_objects("data/")):
        ready.store.delete_object(key)
    taken = take_candidate(ready.store, "some", splits)
    assert reproduce(ready.store, taken).is_same


def test_the_commands_about_sweeps(ready, sweeps, environment, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STORAGE_ROOT", environment.storage_root)

    def said(*arguments: str, status: int = 0) -> str:
        assert main(list(arguments)) == status
        told = capsys.readouterr()
        return told.err if status else told.out

    assert said("sweep").startswith("there is no sweep yet")
    assert said("prune", "--experiments") == "there is nothing to delete\n"
    assert "there is no sweep yet" in said("leaderboard", status=1)
    assert "there is no sweep 'none', but none yet" in said("prune", "--experiments", "none", status=1)
    sweeps.begin(a_sweep())
    run_trial(sweeps, "some/001-s0", splits_of(ready), tmp_path / "c", lambda _: lambda _: None, "run")
    assert said("sweep").splitlines()[1].split()[4:] == ["1", "of", "2", "0", "open"]
    assert "1 trials are not done yet" in said("leaderboard")
    assert json.loads(said("leaderboard", "--json"))["rows"][0]["seeds"] == "1"
    assert "batch_size: 16" in said("leaderboard", "some", "--settings")
    for name in ("", "none"):
        assert f"there is no sweep {name!r}, but some" in said("leaderboard", name, status=1)
        assert f"there is no sweep {name!r}, but some" in said("prune", "--experiments", name, status=1)
        assert f"there is no sweep {name!r}, but some" in said("sweep", "--stop", name, status=1)
    assert "some stays: the sweep some has trials left to do" in said("prune", "--experiments")
    assert said("sweep", "--stop", "some").startswith("some: no more trials begin")
    assert said("sweep").splitlines()[1].endswith("stopped")
    assert said("prune", "--experiments", "some") == "deleted the sweep some with 1 versions\n"
