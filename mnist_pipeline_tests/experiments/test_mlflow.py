"""MLflow sees what the store records, and nothing depends on it: with a real server, one that is killed, bad ones."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mnist_pipeline.__main__ import main
from mnist_pipeline.defs.assets.trial import TRIALS_NAME
from mnist_pipeline.environment import Environment, EnvironmentInvalid
from mnist_pipeline.experiments import mlflow_mirror
from mnist_pipeline.experiments.mlflow_mirror import PRODUCTION_ALIAS, Mirror, mlflow_uri
from mnist_pipeline.experiments.mlflow_records import VERSION_TAG
from mnist_pipeline.experiments.trials import Sweeps
from mnist_pipeline.stores.evaluations import kept_evaluation
from mnist_pipeline.stores.versions import CARD
from mnist_pipeline_tests.conftest import Pipeline, metadata
from mnist_pipeline_tests.defs.test_sweeps import a_sweep
from mnist_pipeline_tests.mlflow_server import MlflowServer, install_mlflow
from mnist_pipeline_tests.task.examples import SPEC, TINY, variables_of

CHAIN = ("digit_classifier", "model_evaluation", "production_digit_classifier")
FORCED = {"strategy": "force", "reason": "a test", "serve_check": "off"}


@pytest.fixture(scope="module")
def program(request) -> Any:
    found = install_mlflow(request.config.cache.mkdir("mlflow"))
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def server(program, tmp_path, monkeypatch) -> Iterator[MlflowServer]:
    """It is waited for, however busy the machine is."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
    monkeypatch.setattr(mlflow_mirror, "MOST_SECONDS", 3600)
    folder = tmp_path / "mlflow"
    folder.mkdir()
    server = MlflowServer(program, folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def variables(tmp_path, raw_folder, server) -> dict[str, str]:
    storage = {"STORAGE_ROOT": str(tmp_path / "storage"), "MLFLOW_TRACKING_URI": server.url}
    return storage | variables_of(raw_folder)


@pytest.fixture
def told(variables, instance) -> Pipeline:
    """A deployment that tells MLflow."""
    return Pipeline(Environment.read(variables), instance)


def asked(server: MlflowServer) -> MlflowClient:
    return MlflowClient(server.url, server.url)


def run_of(server: MlflowServer, name: str, experiment: str = SPEC.name) -> Run:
    found = asked(server).get_experiment_by_name(experiment)
    assert found
    [run] = asked(server).search_runs([found.experiment_id], f"tags.`{VERSION_TAG}` = '{name}'")
    return run


def require_same(server: MlflowServer, pipeline: Pipeline, name: str) -> None:
    """All of it: parameters, each epoch once, scores, card, and the registered version."""
    run, client, manifest = run_of(server, name), asked(server), pipeline.store.manifest(name)
    assert run.info.status == "FINISHED"
    assert run.data.params == {key: str(value) for key, value in manifest.training.settings.items()}
    for metric in ("train_loss", "validation_accuracy"):
        history = client.get_metric_history(run.info.run_id, metric)
        expected = [(epoch.epoch, getattr(epoch, metric)) for epoch in manifest.training.epochs]
        assert sorted((one.step, one.value) for one in history) == expected
    kept = kept_evaluation(pipeline.store, name)
    assert kept
    scores = kept.evaluation
    assert run.data.metrics["evaluation/test_accuracy"] == scores.test.accuracy
    assert run.data.metrics["evaluation/validation_loss"] == scores.validation.loss
    slices = {key: value for key, value in run.data.metrics.items() if key.startswith("slice_accuracy/")}
    assert sorted(slices.values()) == sorted(one.accuracy for one in scores.slices)
    card = client.download_artifacts(run.info.run_id, CARD)
    with open(card, "rb") as file:  # noqa: PTH123
        assert file.read() == pipeline.store.read_object(f"{name}/{CARD}")[0]
    [version] = client.search_model_versions(f"name = '{SPEC.name}' and tags.`{VERSION_TAG}` = '{name}'")
    assert version.run_id == run.info.run_id


def in_production(server: MlflowServer) -> str:
    return asked(server).get_model_version_by_alias(SPEC.name, PRODUCTION_ALIAS).tags[VERSION_TAG]


def test_mlflow_sees_versions_trials_and_what_is_deployed(told, server, variables, monkeypatch, capsys):
    first = metadata(told.run("raw_mnist_data", "processed_mnist_data", *CHAIN), "digit_classifier")
    require_same(server, told, first["model"])
    assert first["mlflow"].startswith(f"{server.url}/#/experiments/")
    assert in_production(server) == first["model"]

    second = metadata(
        told.run(*CHAIN, digit_classifier=TINY | {"seed": 1}, production_digit_classifier=FORCED), "digit_classifier"
    )
    require_same(server, told, second["model"])
    assert in_production(server) == second["model"]

    # By hand, and by the command that makes up for everything.
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["rollback", "--reason", "complaints", "--actor", "kim"]) == 0
    assert in_production(server) == first["model"]
    assert main(["mlflow"]) == 0  # what was decided since
    before = [run.data.to_dictionary() for run in asked(server).search_runs(["1"])]
    assert main(["mlflow"]) == 0
    assert "knows of 2 versions" in capsys.readouterr().out
    assert [run.data.to_dictionary() for run in asked(server).search_runs(["1"])] == before

    # A trial has an experiment of its own, and is not registered until it becomes a candidate.
    sweeps = Sweeps(told.store)
    sweeps.begin(a_sweep(space={"batch_size": {"choices": [64]}}))
    name = sweeps.propose("some").name_of(sweeps.read("some").trials[0])
    told.instance.add_dynamic_partitions(TRIALS_NAME, [name])
    job = told.defs.resolve_job_def("trial_job")
    assert job.execute_in_process(instance=told.instance, partition_key=name).success
    trained = sweeps.chosen(name).trial.version or ""
    assert run_of(server, trained, f"{SPEC.name}/some").info.run_name == name
    assert len(asked(server).search_model_versions(f"name = '{SPEC.name}'")) == 2
    told.run(*CHAIN, digit_classifier={"trial": name}, production_digit_classifier=FORCED)
    assert in_production(server) == trained


def test_a_server_that_is_killed_while_a_run_trains_fails_nothing(told, server, variables, monkeypatch, capsys):
    told.run("raw_mnist_data", "processed_mnist_data")
    tell = Mirror.epoch

    def killed_after_the_first(self, metrics):
        tell(self, metrics)
        server.kill()

    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "epoch", killed_after_the_first)
        result = told.run(*CHAIN)
    assert result.success
    shown = metadata(result, "digit_classifier")
    assert shown["mlflow"].startswith(f"MLflow at {server.url} was not told: ")
    assert told.store.production().version == shown["model"]
    warnings = [entry.user_message for entry in told.instance.all_logs(result.run_id) if entry.level == 30]
    assert sum("Nothing depends on it" in warning for warning in warnings) == len(CHAIN)  # once a step

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["mlflow"]) == 1
    assert "was not told" in capsys.readouterr().err
    server.start()
    assert len(asked(server).search_runs(["1"])) == 1
    assert main(["mlflow"]) == 0
    # The run of before stays as it was cut off, and the version has a whole one.
    require_same(server, told, shown["model"])
    assert in_production(server) == shown["model"]


def test_a_training_that_was_killed_goes_on_in_the_same_run(server):
    settings, key = {"epochs": 3}, "f" * 64
    for _ in range(2):
        Mirror(server.url, SPEC.name, pytest.fail).training_begins(settings, key, "/store")
    mirror = Mirror(server.url, SPEC.name, pytest.fail)
    mirror.training_begins(settings, key, "/store")
    assert len(asked(server).search_runs(["1"])) == 1
    mirror.training_failed("the loss diverged")
    [run] = asked(server).search_runs(["1"])
    assert (run.info.status, run.data.tags["mlflow.note.content"]) == ("FAILED", "the loss diverged")
    Mirror(server.url, SPEC.name, pytest.fail).training_begins(settings, key, "/store")
    assert len(asked(server).search_runs(["1"])) == 2


@contextlib.contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server that answers every request so; gives its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer(self)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("code", "body"),
    [
        (200, b"{}"),
        (200, b"<html>hello"),
        (200, b'{"experiment": 5}'),
        (200, b"[]"),
        (401, b"no"),
        (404, b"no"),
        (500, b"no"),
    ],
)
def test_another_server_fails_nothing(code, body):
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        request.end_headers()
        request.wfile.write(body)

    problems: list[str] = []
    with answering(answer) as url:
        mirror = Mirror(url, SPEC.name, problems.append)
        mirror.training_begins({}, "f" * 64, "/store")
        mirror.training_failed("why")
    assert problems == ([mirror.problem] if body != b"{}" else [])


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        problems: list[str] = []
        mirror = Mirror(f"http://127.0.0.1:{silent.getsockname()[1]}", SPEC.name, problems.append)
        mirror.training_begins({}, "f" * 64, "/store")
        mirror.training_begins({}, "f" * 64, "/store")
    [problem] = problems
    assert "was not told" in problem and "timed out" in problem


def test_a_server_that_dawdles_is_given_up_after_so_many_seconds_in_all(monkeypatch):
    monkeypatch.setattr(mlflow_mirror, "MOST_SECONDS", 2)
    held = threading.Event()

    def dawdle(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000000")
        request.end_headers()
        with contextlib.suppress(OSError):
            while not held.wait(0.2):  # never so long that a read times out
                request.wfile.write(b" ")
                request.wfile.flush()

    problems: list[str] = []
    with answering(dawdle) as url:
        Mirror(url, SPEC.name, problems.append).training_begins({}, "f" * 64, "/store")
        held.set()
    assert len(problems) == 1 and "it took too long" in problems[0]


@pytest.mark.parametrize("artifacts", ["s3://nowhere/x", "gs://nowhere/x", "wasbs://x@nowhere.blob/x"])
def test_cards_that_cannot_be_put_there_fail_nothing(told, server, variables, monkeypatch, artifacts):
    """Without the packages or the credentials of a bucket to which the server sends its clients."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    asked(server).create_experiment(SPEC.name, artifact_location=artifacts)
    told.run("raw_mnist_data", "processed_mnist_data")
    shown = metadata(told.run("digit_classifier"), "digit_classifier")
    assert "was not told" in shown["mlflow"]
    assert told.store.versions() == [shown["model"]]


def test_no_secret_is_told(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cr3t-token\n")
    problems: list[str] = []
    Mirror("http://127.0.0.1:9", SPEC.name, problems.append).training_begins({}, "f" * 64, "/store")
    assert len(problems) == 1 and "s3cr3t" not in problems[0]


def test_mlflow_is_asked_for_where_it_is_wanted(monkeypatch, capsys):
    assert mlflow_uri(Environment.read({})) is None
    with pytest.raises(EnvironmentInvalid, match=r"MLFLOW_TRACKING_URI: a URL begins with"):
        Environment.read({"MLFLOW_TRACKING_URI": "databricks"})
    with pytest.raises(EnvironmentInvalid, match=r"MLFLOW_TRACKING_URI: .*user"):
        Environment.read({"MLFLOW_TRACKING_URI": "http://me:secret@host"})
    wanted = Environment.read({"MLFLOW_TRACKING_URI": "http://host"})
    assert mlflow_uri(wanted) == "http://host"
    monkeypatch.setattr(mlflow_mirror, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentInvalid, match="needs the extra mlflow: "):
        mlflow_uri(wanted)
    assert wanted.in_branch("x").mlflow_tracking_uri is None
