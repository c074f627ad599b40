"""Faults that only real processes show: kill -9 at any moment, real command lines, real exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import pytest

from mnist_pipeline.environment import Environment
from mnist_pipeline.stores import LocalModelStore
from mnist_pipeline_tests.conftest import Pipeline
from mnist_pipeline_tests.live import wait_until
from mnist_pipeline_tests.task.examples import TINY, variables_of

pytestmark = pytest.mark.live

PROJECT = Path(__file__).parents[1]
DG = Path(sys.executable).with_name("dg")


@pytest.fixture
def variables(tmp_path, raw_folder) -> dict[str, str]:
    """The environment of a deployment of its own."""
    home = tmp_path / "dagster_home"
    home.mkdir()
    shutil.copy(PROJECT / "dagster.yaml", home)
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)  # by which dg finds the project
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.get_runs_count()  # creates the tables: two processes that do it at once are in each other's way
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLACK_", "S3_", "MODEL_"))}
    return kept | {
        "DAGSTER_HOME": str(home),
        "STORAGE_ROOT": str(tmp_path / "storage"),
        **variables_of(raw_folder),
        "VIRTUAL_ENV": sys.prefix,
        "PYTHONWARNINGS": "ignore",
    }


def folder(variables: dict[str, str]) -> Path:
    """Where commands run: not the project, whose .env may name the stores of a real deployment."""
    return Path(variables["DAGSTER_HOME"]).parent


class Launched(NamedTuple):
    """`dg launch` in a process group of its own, to be killed whole."""

    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def succeeds(self) -> None:
        status = self.process.wait(timeout=240)
        assert status == 0, self.log.read_text()[-3000:]


Launch = Callable[[str, dict[str, Any]], Launched]


@pytest.fixture
def launch(variables) -> Iterator[Launch]:
    """Starts a job with the configuration of its steps; what still runs when the test ends is killed."""
    launched: list[Launched] = []

    def start(job: str, config: dict[str, Any]) -> Launched:
        steps = {"ops": {step: {"config": values} for step, values in config.items()}}
        command = [str(DG), "launch", "--job", job, "--config-json", json.dumps(steps)]
        log = folder(variables) / f"{len(launched)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=folder(variables),
                env=variables,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        launched.append(Launched(process, log))
        return launched[-1]

    yield start
    for each in launched:
        each.kill()


def python(variables: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mnist_pipeline", *arguments]
    return subprocess.run(command, cwd=folder(variables), env=variables, text=True, capture_output=True, check=False)


def records(variables: dict[str, str], kind: str, asset: str) -> list[dict[str, Any]]:
    """The metadata of all materializations or observations of an asset, oldest first."""
    with dg.DagsterInstance.from_config(variables["DAGSTER_HOME"]) as instance:
        found = getattr(instance, f"fetch_{kind}")(dg.AssetKey(asset), limit=1000).records
    events = [getattr(record, f"asset_{kind[:-1]}") for record in reversed(found)]
    return [{name: value.value for name, value in event.metadata.items()} for event in events]


def epochs_trained(variables: dict[str, str]) -> int:
    """By all trainings together, as they have reported."""
    return len(records(variables, "observations", "digit_classifier"))


def wait_for_epochs(variables: dict[str, str], count: int) -> None:
    wait_until(lambda: epochs_trained(variables) >= count, f"{count} epochs", 120, every=0.5)


def training_step(variables: dict[str, str]) -> int:
    """The process of the step that trains, as its start event says."""
    with dg.DagsterInstance.from_config(variables["DAGSTER_HOME"]) as instance:
        [run] = instance.get_runs()
        started = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_WORKER_STARTED)
    [event] = [e.dagster_event for e in started if e.dagster_event and e.dagster_event.step_key == "digit_classifier"]
    return int(event.engine_event_data.metadata["pid"].value)  # type: ignore[arg-type]


def test_a_killed_training_step_is_retried_and_continues(variables, launch):
    epochs = 30
    run = launch(
        "full_pipeline_job",
        {
            "digit_classifier": {**TINY, "epochs": epochs},
            "production_digit_classifier": {"accuracy_threshold": 0.3},
        },
    )
    wait_for_epochs(variables, 2)
    os.kill(training_step(variables), signal.SIGKILL)
    run.succeeds()
    [trained] = records(variables, "materializations", "digit_classifier")
    assert 1 <= trained["resumed_after_epoch"] < epochs
    assert trained["epochs"] == epochs
    observed = [epoch["epoch"] for epoch in records(variables, "observations", "digit_classifier")]
    assert observed[-1] == epochs
    # The epoch that the kill interrupted may stand twice: saved, but its report came after the kill.
    assert len(observed) <= epochs + 1

    summary = python(variables, "summary")
    assert summary.returncode == 0, summary.stderr
    assert f"deployed:          {trained['model']}" in summary.stdout
    assert "images predicted:  200" in summary.stdout
    assert "what to do next" not in summary.stdout
    store = LocalModelStore(base_path=f"{variables['STORAGE_ROOT']}/models")
    deployed = store.production()
    assert deployed
    for outcome, words in (
        ("refused", "lower accuracy_threshold"),
        ("waiting", f"approve {deployed.version} --reason"),
    ):
        fields = {"id": f"9-{outcome}", "outcome": outcome, "replaces": deployed.id, "decided_at": datetime.now(UTC)}
        store.record(deployed.model_copy(update=fields))
        [next_step] = [line for line in python(variables, "summary").stdout.splitlines() if "what to do next" in line]
        assert words in next_step


def write_config(variables: dict[str, str], content: Any) -> str:
    path = folder(variables) / "my.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return str(path)


def test_one_command_runs_everything_and_sums_up(variables):
    gate, training = {"accuracy_threshold": 0.3}, {**TINY, "epochs": 1}
    settings = {"production_digit_classifier": {"config": gate}, "digit_classifier": {"config": training}}
    config = write_config(variables, {"ops": settings})
    done = python(variables, "run", "--config", config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "images predicted:  200" in done.stdout
    assert "last decision:     promoted (quality, by run " in done.stdout
    with dg.DagsterInstance.from_config(variables["DAGSTER_HOME"]) as instance:
        [run] = instance.get_runs()
        steps = instance.get_run_step_stats(run.run_id)
    assert (run.job_name, run.status) == ("full_pipeline_job", dg.DagsterRunStatus.SUCCESS)
    assert len(steps) == 7  # the checks are in the steps of their assets

    failed = python(variables | {"DATASET_DIR": "/no/such/folder"}, "run", "--config", config)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("error: the run ")
    assert "no files of mnist in /no/such/folder" in failed.stdout + failed.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"ops": {"digit_classifier": {"config": {"epochs": 0}}}}, "digit_classifier.epochs"),
        ({"ops": {"digit_classifier": {"config": {"epochz": 1}}}}, "epochz"),
        ({"ops": {"no_such_step": {}}}, "no_such_step"),
        ({"ops": {"digit_classifier": {"config": {"epochs": {"env": "NOT_SET"}}}}}, "NOT_SET"),
        (["ops"], "must have the form `ops: <step>: config: ...`"),
        (None, "cannot be read"),
    ],
)
def test_settings_that_are_wrong_are_refused_before_a_run(variables, content, message):
    config = write_config(variables, content) if content else "/no/such/file.yaml"
    refused = python(variables, "run", "--config", config)
    assert refused.returncode == 1
    assert message in refused.stderr.split("error: ", 1)[1]
    assert "Traceback" not in refused.stderr
    with dg.DagsterInstance.from_config(variables["DAGSTER_HOME"]) as instance:
        assert instance.get_runs() == []


def test_after_a_run_that_was_killed_whole_the_next_one_continues(variables, launch):
    config = {"digit_classifier": {**TINY, "epochs": 30}}
    killed = launch("training_job", config)
    wait_for_epochs(variables, 2)
    killed.kill()
    with dg.DagsterInstance.from_config(variables["DAGSTER_HOME"]) as instance:
        [run] = instance.get_runs()
        assert instance.event_log_storage.get_concurrency_info("training").active_run_ids == {run.run_id}
        assert python(variables, "recover").stdout.startswith(f"run {run.run_id}: it had died: none of its processes")
        assert instance.event_log_storage.get_concurrency_info("training").active_run_ids == set()
        [run] = instance.get_runs()
    assert run.status == dg.DagsterRunStatus.FAILURE
    again = python(variables, "recover")
    assert (again.returncode, again.stdout) == (0, "")
    ended = python(variables, "recover", "--run", run.run_id)
    assert (ended.returncode, ended.stderr) == (1, f"error: there is no run {run.run_id} in progress\n")
    launch("training_job", config).succeeds()
    [trained] = records(variables, "materializations", "digit_classifier")
    assert trained["resumed_after_epoch"] >= 1


def test_trainings_take_turns_and_nothing_else_waits_for_them(variables, launch):
    with dg.DagsterInstance.from_config(variables["DAGSTER_HOME"]) as instance:
        Pipeline(Environment.read(variables), instance).run()
        pool = partial(instance.event_log_storage.get_concurrency_info, "training")
        before = epochs_trained(variables)
        endless = launch("training_job", {"digit_classifier": {**TINY, "epochs": 1000}})
        wait_for_epochs(variables, before + 1)
        waiting = launch("training_job", {"digit_classifier": TINY})
        wait_until(lambda: pool().pending_step_count == 1, "a training that waits", 120, every=0.5)
        launch("inference_job", {}).succeeds()

        assert endless.process.poll() is None
        assert pool().pending_step_count == 1
        assert python(variables, "recover").stdout.count(": it is at work; where it trains") == 2  # and lives on
        assert pool().pending_step_count == 1
        endless.kill()
        assert "had died" in python(variables, "recover").stdout
        waiting.succeeds()
    assert records(variables, "materializations", "digit_classifier")[-1]["epochs"] == TINY["epochs"]


def test_a_setting_out_of_range_stops_the_run_before_any_work(variables, launch):
    run = launch("full_pipeline_job", {"digit_classifier": {"learning_rate": 0.0, "seed": -1}})
    assert run.process.wait(timeout=120) != 0
    output = run.log.read_text()
    assert "digit_classifier.learning_rate: Input should be greater than 0 (got 0.0; allowed: > 0 and <= 10)" in output
    assert "digit_classifier.seed: Input should be greater than or equal to 0 (got -1; allowed: >= 0" in output
    assert records(variables, "materializations", "raw_mnist_data") == []


def test_the_command_line_shows_rolls_back_approves_and_prunes(variables, instance):
    pipeline = Pipeline(Environment.read(variables), instance)
    assert python(variables, "models").stdout == "the store has no version yet\n"
    pipeline.run()
    pipeline.run(
        digit_classifier={**TINY, "seed": 1}, production_digit_classifier={"strategy": "force", "reason": "a test"}
    )
    second, first = pipeline.store.versions()
    header, *lines = python(variables, "models").stdout.splitlines()
    assert header.split("  ")[0] == "version"
    assert lines[0].startswith(f"{second}  20") and lines[0].endswith("promoted (force)    deployed, reference")
    assert lines[1].startswith(f"{first}  20") and lines[1].endswith("promoted (quality)")
    assert len({line.index("promoted") for line in lines} | {header.index("decision")}) == 1
    rows = json.loads(python(variables, "models", "--json").stdout)
    assert [row["version"] for row in rows] == [second, first]
    assert rows[0]["test_accuracy"] == pipeline.store.production().test_accuracy
    assert python(variables, "rollback").returncode == 2
    for version, message in (("nonsense", "there is no model version 'nonsense'"), ("mnist", "of several versions")):
        refused = python(variables, "rollback", "--reason", "why", "--to", version)
        assert refused.returncode == 1
        assert message in refused.stderr
        assert "Traceback" not in refused.stderr
    done = python(variables, "rollback", "--reason", "customers complain", "--actor", "kim", "--to", first[:-1])
    assert f"deployed {first} in place of {second}" in done.stdout
    assert json.loads(python(variables, "production").stdout)["version"] == first
    assert json.loads(python(variables, "show", first[:-1]).stdout)["name"] == first
    trail = python(variables, "decisions").stdout.splitlines()
    assert len(trail) == 3
    assert python(variables, "decisions", "--limit", "2").stdout.splitlines() == trail[:2]
    some = python(variables, "models", "--limit", "1").stdout.splitlines()
    assert [line.split()[0] for line in some[1:]] == [second, first]  # the newest one, and what is deployed
    assert trail[0].endswith(f"promoted  rollback {first} by kim: customers complain")
    assert python(variables, "prune", "--keep", "0").returncode == 2
    for old in (["--keep", "1"], ["--runs", "30"]):
        assert python(variables, "prune", *old).stdout == "there is nothing to delete\n"
    assert pipeline.store.versions() == [second, first]

    nobody = python(variables, "approve", second, "--reason", "fine")
    assert nobody.returncode == 1
    assert nobody.stderr.startswith(f"error: {second} does not wait for approval")
    approval = {"strategy": "approval", "accuracy_threshold": 0.3, "max_regression": 1.0, "max_slice_regression": 1.0}
    pipeline.run(digit_classifier={**TINY, "seed": 2}, production_digit_classifier=approval)
    third = pipeline.store.waiting().version
    assert python(variables, "models").stdout.splitlines()[1].split()[-3:] == ["waiting", "(approval)", "waiting"]
    there = str(folder(variables) / "copied")
    copied = python(variables, "copy", there).stdout.splitlines()
    assert copied[-1].startswith(f"3 versions and 4 decisions copied to {there}, 0 versions were there")
    assert python(variables, "copy", there).stdout.endswith(f"3 versions were there; to use it: MODEL_STORE={there}\n")
    elsewhere = {name: value for name, value in variables.items() if name != "STORAGE_ROOT"} | {"MODEL_STORE": there}
    assert python(elsewhere, "production").stdout == python(variables, "production").stdout

    done = python(variables, "approve", third[:-1], "--reason", "looked at it", "--actor", "kim")
    assert f"deployed {third} in place of {first}" in done.stdout
    assert json.loads(python(variables, "production").stdout)["strategy"] == "approval"


def test_an_experiment_from_the_command_line(variables):
    """Another split, of which the deployment sees nothing until its candidate comes."""
    tiny: dict[str, Any] = {"production_digit_classifier": {"config": {"accuracy_threshold": 0.3}}}
    tiny |= {"digit_classifier": {"config": {**TINY, "epochs": 1}}}
    assert python(variables, "run", "--config", write_config(variables, {"ops": tiny})).returncode == 0
    assert "there is no experiment yet" in python(variables, "experiment").stdout
    made = python(variables, "experiment", "split")
    assert made.returncode == 0, made.stderr
    assert "models: 1, last events of assets: 7;" in made.stdout
    assert python(variables, "experiment", "split").stderr.startswith("error: there is an experiment split already")
    storage = Path(variables["STORAGE_ROOT"])
    before = {path: path.read_bytes() for path in storage.rglob("*") if path.is_file() and "branches" not in path.parts}

    inside = variables | {"EXPERIMENT": "split"}  # its DAGSTER_HOME is found, in place of the one of the deployment
    home = python(inside, "experiment", "split", "--home").stdout.strip()
    assert home == f"{storage}/branches/split/home"
    assert "trained last" in python(inside, "summary").stdout
    other = tiny | {"processed_mnist_data": {"config": {"validation_fraction": 0.3}}}
    done = python(inside, "run", "--config", write_config(variables, {"ops": other}))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"predictions:       {storage}/branches/split/storage/predictions/" in done.stdout
    assert before == {path: path.read_bytes() for path in before}
    files = {path for path in storage.rglob("*") if path.is_file() and "branches" not in path.parts}
    assert files == set(before)
    assert "versions trained: 1, the last one was " in python(variables, "experiment").stdout
    assert python(inside, "discard", "split").stderr.startswith("error: EXPERIMENT=split is set")

    promoted = python(variables, "promote", "split")
    assert promoted.returncode == 0, promoted.stdout + promoted.stderr
    assert " goes to evaluation and gate" in promoted.stdout
    assert "decisions of split by test images, which count for the deployment from now on: 1" in promoted.stdout
    assert len(LocalModelStore(base_path=str(storage / "models")).versions()) == 2
    assert python(variables, "discard", "split").stdout == "discarded split\n"
    assert list((storage / "branches").iterdir()) == []
    assert python(variables, "promote", "split").stderr.startswith("error: there is no experiment 'split'")


@pytest.mark.parametrize(
    ("command", "changes", "message"),
    [
        (
            "models",
            {"MODEL_STORE": "foo"},
            "error: MODEL_STORE: 'foo' is neither a folder (./foo is one) nor an address",
        ),
        ("models", {"MODEL_STORE": "s3"}, "error: MODEL_STORE=s3 needs S3_MODEL_BUCKET"),
        ("summary", {"DAGSTER_HOME": "/no/such/folder"}, "error: "),
        ("summary", {"DAGSTER_HOME": ""}, "error: set DAGSTER_HOME"),
        ("summary", {}, "error: raw_mnist_data was never materialized"),
        ("rollback --reason x", {}, "error: nothing is deployed"),
        (
            "models",
            {"MODEL_STORE": __file__},
            f"error: {__file__} is, or lies below, a file: a model store is a folder",
        ),
        ("experiment A", {}, "error: 'A' is no name of an experiment"),
        ("models", {"EXPERIMENT": "y"}, "error: EXPERIMENT: there is no "),
        ("mlflow", {}, "error: MLFLOW_TRACKING_URI: there is none"),
        ("models", {"MODEL_STORE": "memory://x"}, "error: memory://x lives in the memory of one process"),
        ("copy ftp://host", {}, "error: 'ftp://host' is neither a folder nor one of s3://"),
        ("copy s3://user:secret@bucket", {}, "error: an address must not hold a user, a password"),
    ],
)
def test_a_users_mistake_is_answered_with_a_sentence(variables, command, changes, message):
    arguments = [sys.executable, "-m", "mnist_pipeline", *command.split()]
    answer = subprocess.run(
        arguments, cwd=folder(variables), env=variables | changes, text=True, capture_output=True, check=False
    )
    assert answer.returncode == 1
    assert answer.stderr.startswith(message)
    assert "Traceback" not in answer.stderr
