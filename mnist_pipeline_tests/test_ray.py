"""A real Ray cluster of two hosts: each step where it belongs, a host killed, and equal weights."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import dagster as dg
import pytest
import yaml
from dagster._core.launcher import WorkerStatus
from moto.server import ThreadedMotoServer

from mnist_pipeline.defs.engines.traces import RAY_JOB
from mnist_pipeline.environment import Environment
from mnist_pipeline.stores import store_from_environment
from mnist_pipeline_tests.held import HELD_FROM, HOLD_TRAINING
from mnist_pipeline_tests.live import OWN_VARIABLES, PROJECT, SETTINGS, Deployment
from mnist_pipeline_tests.postgres import Postgres, postgres
from mnist_pipeline_tests.ray_cluster import Cluster, Network, cluster, network
from mnist_pipeline_tests.task.examples import TINY, variables_of

pytestmark = pytest.mark.live

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "several-hosts"
FIRST, SECOND = range(2)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Network]:
    with network() as found:
        yield found


@pytest.fixture
def database(hosts) -> Iterator[Postgres]:
    with postgres(hosts.first) as found:
        if isinstance(found, str):
            pytest.skip(found)
        yield found


@pytest.fixture(scope="module")
def bucket(hosts) -> Iterator[str]:
    """The URL of a store that both hosts reach."""
    server = ThreadedMotoServer(ip_address=hosts.first, port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    boto3.resource("s3", endpoint_url=url, region_name="us-east-1", **_keys()).create_bucket(Bucket=BUCKET)
    yield url
    server.stop()


def _keys() -> dict[str, str]:
    return {name.lower().removesuffix("_default_region"): value for name, value in KEYS.items() if "REGION" not in name}


@pytest.fixture
def of_first(tmp_path) -> Path:
    """A folder of the first host's disk, which is empty on the second."""
    folder = tmp_path / "of_first"
    folder.mkdir()
    return folder


@pytest.fixture
def two_hosts(hosts, database, tmp_path, of_first) -> Iterator[Cluster]:
    """The first one has a core; the second one has a core and the resource that training asks for."""
    own = {**KEYS, **database.variables, HOLD_TRAINING: str(tmp_path / "hold")}
    with cluster(hosts, own, of_first) as found:
        found.head(cpus=1)
        found.join(cpus=1, gpus=1)
        yield found


def variables(folder: Path, cluster: Cluster, database: Postgres, bucket: str) -> dict[str, str]:
    """Those of a deployment on the cluster."""
    file = folder / "executor.yaml"
    compute = {"digit_classifier": {"cores": 1, "memory_mib": 1024, "gpus": 1}}
    file.write_text(yaml.safe_dump({"ray": {"address": cluster.address}, "compute": compute}))
    return {
        "EXECUTOR": "ray",
        "EXECUTOR_CONFIG": str(file),
        "STORAGE_ROOT": f"s3://{BUCKET}/{folder.name}",
        "MODEL_STORE": f"s3://{BUCKET}/{folder.name}/models",
        "S3_ENDPOINT_URL": bucket,
        "OMP_NUM_THREADS": "1",
        **KEYS,
        **database.variables,
    }


def jobs(instance: dg.DagsterInstance) -> dict[str, list[str]]:
    """The jobs of each step, the first one first."""
    found: dict[str, list[str]] = {}
    for run in reversed(instance.get_runs()):
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
            event = entry.dagster_event
            if event and event.step_key and RAY_JOB in event.engine_event_data.metadata:
                found.setdefault(event.step_key, []).append(str(event.engine_event_data.metadata[RAY_JOB].value))
    return found


def test_the_full_pipeline_on_two_hosts(of_first, raw_folder, two_hosts, database, bucket, monkeypatch):
    """Training goes to the host with the resource, parts to both; weights are those of one process, byte for byte.

    History, settings and values of the run are on no disk that both have.
    """
    config = of_first / "config.yaml"
    steps = {"digit_classifier": TINY, "production_digit_classifier": {"accuracy_threshold": 0.3}}
    config.write_text(yaml.safe_dump({"ops": {step: {"config": values} for step, values in steps.items()}}))
    kept = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}
    everywhere = {"DAGSTER_HOME": str(of_first), "PREDICTION_PARTS": "4", "PYTHONWARNINGS": "ignore"}
    everywhere |= variables_of(raw_folder) | variables(of_first, two_hosts, database, bucket)
    weights = []
    alone = {"EXECUTOR": "in_process", "EXECUTOR_CONFIG": "", "STORAGE_ROOT": str(of_first), "MODEL_STORE": ""}
    for own in (alone, {}):
        (of_first / "dagster.yaml").write_bytes((PROJECT / "deploy/dagster.postgres.yaml").read_bytes())
        done = subprocess.run(
            [sys.executable, "-m", "mnist_pipeline", "run", "--config", str(config)],
            cwd=of_first,
            env=kept | everywhere | own,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        for name, value in KEYS.items():
            monkeypatch.setenv(name, value)
        store = store_from_environment(Environment.read(everywhere | own))
        [version] = store.versions()
        weights.append(store.load(version)[1])
    assert weights[0] == weights[1]
    monkeypatch.setenv("DAGSTER_HOME", str(of_first))
    for name, value in database.variables.items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.get() as instance:
        found = jobs(instance)
    parts = {f"batch_digit_predictions.predict_part_{number}" for number in range(4)}
    assert set(found) == {"digit_classifier", *parts}
    [training] = found["digit_classifier"]
    assert two_hosts.node_of(training) == SECOND
    assert {two_hosts.node_of(job) for part in parts for job in found[part]} == {FIRST, SECOND}


def test_the_host_of_a_training_is_killed_and_then_its_run(
    tmp_path, raw_folder, two_hosts, database, bucket, monkeypatch
):
    """Training goes on from the bucket on the other host, and is not begun again when all of Dagster is killed."""
    hold = tmp_path / "hold"
    hold.touch()
    for name, value in {**database.variables, **KEYS}.items():
        monkeypatch.setenv(name, value)
    deployment = Deployment(
        tmp_path / "deployment",
        "mnist_pipeline_tests.held",
        SETTINGS,
        PROJECT / "deploy/dagster.postgres.yaml",
        AUTOMATION="off",
        **variables(tmp_path, two_hosts, database, bucket),
        **variables_of(raw_folder),
    )
    deployment.start()
    try:
        deployment.submit("training_job")
        deployment.wait_for(lambda: deployment.epochs() == HELD_FROM, "some epochs", 240)
        [first] = jobs(deployment.instance)["digit_classifier"]
        assert two_hosts.node_of(first) == SECOND
        two_hosts.kill(SECOND)
        two_hosts.join(cpus=1, gpus=1, on_second=False)
        deployment.wait_for(lambda: deployment.epochs() > HELD_FROM, "training to go on", 300)
        [_, second] = jobs(deployment.instance)["digit_classifier"]
        assert two_hosts.node_of(second) == FIRST + 1  # of the hosts that are left, it joined last
        deployment.kill()
        deployment.start()
        [run] = deployment.running()
        health = deployment.instance.run_launcher.check_run_worker_health(run)
        assert health.status == WorkerStatus.RUNNING
        assert health.msg == f"digit_classifier in Ray job {second} of {two_hosts.address} is at work"
        began = time.time()
        deployment.wait_for(lambda: deployment.looked_at() > began, "a look of the daemon at the run", 120)
        hold.unlink()
        [built] = deployment.wait_for(lambda: deployment.built("digit_classifier"), "the training", 240)
        assert built["resumed_after_epoch"] == HELD_FROM
        deployment.wait_for(lambda: not deployment.running(), "the runs to end", 240)
        assert len(jobs(deployment.instance)["digit_classifier"]) == 2
        assert len(deployment.built("digit_classifier")) == 1
        last, *_ = deployment.instance.get_runs()
        assert last.status == dg.DagsterRunStatus.SUCCESS
    finally:
        deployment.stop()
