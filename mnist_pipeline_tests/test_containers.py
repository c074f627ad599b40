"""Real containers: steps with the compute that they declare, killed and out of memory, and equal weights everywhere."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest
import yaml
from dagster._core.launcher import WorkerStatus

from mnist_pipeline.defs.engines.containers import RUN_LABEL, STEP_LABEL
from mnist_pipeline.defs.training import TRAINING_COMPUTE
from mnist_pipeline.stores import LocalModelStore
from mnist_pipeline_tests.containers import IMAGE, Containers, containers
from mnist_pipeline_tests.held import HELD_FROM, HOLD_TRAINING
from mnist_pipeline_tests.live import OWN_VARIABLES, PROJECT, SETTINGS, Deployment
from mnist_pipeline_tests.task.examples import TINY, variables_of

pytestmark = pytest.mark.live

MIB = 1 << 20

MEMORY_MIB = TRAINING_COMPUTE.memory_mib - 1000
"""What a deployment has for its training."""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Containers]:
    with containers() as found:
        if isinstance(found, str):
            pytest.skip(found)
        yield found


def executor_config(folder: Path, daemon: Containers, **compute: dict[str, int]) -> dict[str, str]:
    """The variables of a deployment in `folder` with steps in containers; `compute` is what it declares otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "executor.yaml"
    config = daemon.config(folder)
    config["env_vars"].append(f"{HOLD_TRAINING}={folder / 'hold'}")
    file.write_text(yaml.safe_dump(config | {"compute": compute}))
    return {
        HOLD_TRAINING: str(folder / "hold"),
        "EXECUTOR": "docker",
        "EXECUTOR_CONFIG": str(file),
        "DOCKER_HOST": daemon.host,
    }


@pytest.fixture
def deployment(tmp_path, raw_folder, daemon, request) -> Iterator[Deployment]:
    folder, module = tmp_path / "deployment", getattr(request, "param", "mnist_pipeline.definitions")
    data = tmp_path / "deployment" / "raw"
    variables = executor_config(folder, daemon) | variables_of(data)
    shutil.copytree(raw_folder, data)
    deployment = Deployment(folder, module, SETTINGS, AUTOMATION="off", **variables)
    deployment.start()
    yield deployment
    deployment.stop()


def training_containers(deployment: Deployment) -> list[str]:
    """The containers that trained, the first one first."""
    runs = deployment.instance.get_runs()
    found = [
        entry.dagster_event.engine_event_data.metadata["Docker container id"].value
        for run in reversed(runs)
        for entry in deployment.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_WORKER_STARTING)
        if entry.dagster_event and entry.dagster_event.step_key == "digit_classifier"
    ]
    return [str(number) for number in found]


def test_the_same_weights_from_every_engine(tmp_path, raw_folder, daemon):
    """One process, processes, and containers: the same code, byte for byte, at the same number of threads."""
    weights, seen, predicted = {}, {}, {}
    of_another = {RUN_LABEL: "a run of another deployment", STEP_LABEL: "digit_classifier"}
    options = daemon.config(tmp_path)["container_kwargs"]
    neighbour = daemon.client.containers.run(IMAGE, ["sleep", "3600"], detach=True, labels=of_another, **options)
    for engine in ("in_process", "multiprocess", "docker"):
        folder = tmp_path / engine
        home = folder / "home"
        home.mkdir(parents=True)
        shutil.copy(PROJECT / "dagster.yaml", home)
        shutil.copytree(raw_folder, folder / "raw")
        config = folder / "config.yaml"
        steps = {"digit_classifier": TINY, "production_digit_classifier": {"accuracy_threshold": 0.3}}
        config.write_text(yaml.safe_dump({"ops": {step: {"config": values} for step, values in steps.items()}}))
        variables = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}
        own = {"EXECUTOR": engine}
        if engine == "docker":
            own = executor_config(folder, daemon, digit_classifier={"memory_mib": MEMORY_MIB})
        own |= {"DAGSTER_HOME": str(home), "STORAGE_ROOT": str(folder / "storage"), "OMP_NUM_THREADS": "1"}
        own["PREDICTION_PARTS"] = "2"
        done = subprocess.run(
            [sys.executable, "-m", "mnist_pipeline", "run", "--config", str(config)],
            cwd=folder,
            env=variables | own | variables_of(folder / "raw") | {"PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        store = LocalModelStore(base_path=str(folder / "storage" / "models"))
        [version] = store.versions()
        manifest, weights[engine] = store.load(version)
        assert manifest.training.provenance
        assert manifest.training.provenance.threads == 1
        [table] = (folder / "storage" / "predictions").glob("*_in_2.parquet")
        columns = pq.read_table(table, columns=["index", "label", "confidence"])
        predicted[engine] = columns.sort_by("index").to_pandas().to_csv()
        with dg.DagsterInstance.from_config(str(home)) as instance:
            [run] = instance.get_runs()
            assert run.status == dg.DagsterRunStatus.SUCCESS
            started = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_WORKER_STARTED)
            seen[engine] = {
                entry.step_key: entry.dagster_event.engine_event_data.metadata["pid"].value
                for entry in started
                if entry.dagster_event
            }
    assert len(set(weights.values())) == 1
    # Each step of the second is a process of its own; of the third only training is in a container: its process 1.
    assert seen["in_process"] == {}
    assert len(set(seen["multiprocess"].values())) == len(seen["multiprocess"]) > 5
    parts = {f"batch_digit_predictions.predict_part_{number}" for number in range(2)}
    assert {step for step, pid in seen["docker"].items() if pid == "1"} == {"digit_classifier", *parts}
    assert set(seen["docker"]) == set(seen["multiprocess"])
    assert len(set(predicted.values())) == 1
    neighbour.reload()
    assert neighbour.status == "running"
    neighbour.remove(force=True)
    found = {container.labels[STEP_LABEL]: container for container in daemon.client.containers.list(all=True)}
    assert set(found) == {"digit_classifier", *parts}
    container = found["digit_classifier"]
    limits = container.attrs["HostConfig"]
    assert limits["Memory"] == limits["MemorySwap"] == MEMORY_MIB * MIB  # the deployment's own
    assert limits["NanoCpus"] == min(TRAINING_COMPUTE.cores, os.cpu_count() or 1) * 10**9
    assert "OMP_NUM_THREADS=1" in container.attrs["Config"]["Env"]


@pytest.mark.parametrize("deployment", ["mnist_pipeline_tests.held"], indirect=True)
def test_a_container_is_killed_and_then_the_run_beside_it(deployment, daemon, monkeypatch):
    hold = Path(deployment.variables[HOLD_TRAINING])
    hold.touch()
    deployment.submit("training_job")
    deployment.wait_for(lambda: deployment.epochs() == HELD_FROM, "some epochs", 180)
    [first] = training_containers(deployment)
    daemon.client.containers.get(first).kill()
    # It is tried again, and goes on after its last whole epoch.
    deployment.wait_for(lambda: deployment.epochs() > HELD_FROM, "training to go on", 180)
    # All processes of Dagster are killed. The container trains on, and nobody starts another one beside it.
    deployment.kill()
    deployment.start()
    began = time.time()
    monkeypatch.setenv("DOCKER_HOST", daemon.host)
    [run] = deployment.running()
    health = deployment.instance.run_launcher.check_run_worker_health(run)
    assert health.status == WorkerStatus.RUNNING
    assert re.fullmatch(r"digit_classifier in container [0-9a-f]{12} is at work", health.msg or "")
    deployment.wait_for(lambda: deployment.looked_at() > began, "a look of the daemon at the run", 120)
    hold.unlink()
    [built] = deployment.wait_for(lambda: deployment.built("digit_classifier"), "the training", 180)
    assert built["resumed_after_epoch"] == HELD_FROM
    deployment.wait_for(lambda: not deployment.running(), "the runs to end", 180)
    assert len(training_containers(deployment)) == 2
    runs = deployment.instance.get_runs()
    assert [run.status for run in reversed(runs)] == [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS]
    assert len(deployment.built("digit_classifier")) == 1


@pytest.mark.parametrize("deployment", ["mnist_pipeline_tests.little_memory"], indirect=True)
def test_a_container_out_of_memory_says_so(deployment, daemon):
    deployment.submit("training_job")
    deployment.wait_for(
        lambda: (runs := deployment.instance.get_runs()) and not deployment.running() and runs, "the failure", 240
    )
    [run] = deployment.instance.get_runs()
    assert run.status == dg.DagsterRunStatus.FAILURE
    [failed] = deployment.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    assert "it took more than 100 MiB of memory and was killed: declare more beside the asset" in failed.message + (
        json.dumps(failed.dagster_event.step_failure_data.error.message) if failed.dagster_event else ""
    )
    assert len(training_containers(deployment)) == 3  # as often as its retry policy says
