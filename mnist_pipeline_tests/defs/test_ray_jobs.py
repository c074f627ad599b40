"""The jobs that a run submits to Ray, caught; what a real cluster does with them is in test_ray."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.execution.plan.objects import StepRetryData
from dagster._utils.error import SerializableErrorInfo
from dagster_ray.core.executor import RayExecutorConfig

from mnist_pipeline.defs.engines import ray_client
from mnist_pipeline.defs.engines import ray_jobs as engine
from mnist_pipeline.defs.engines.compute import Compute
from mnist_pipeline.defs.engines.ray_client import Client
from mnist_pipeline.defs.engines.traces import RAY_ADDRESS, RAY_JOB
from mnist_pipeline.environment import Environment
from mnist_pipeline_tests.ray_api import SILENT, Jobs, ray_jobs

ADDRESS = "RAY_OF_THE_TEST"
WITH_RESOURCES = {"dagster-ray/config": json.dumps({"num_cpus": 3, "resources": {"scanner": 1}})}


@dg.op(tags=Compute(cores=1, memory_mib=512).tags() | WITH_RESOURCES, retry_policy=dg.RetryPolicy(max_retries=1))
def first(context: dg.OpExecutionContext) -> None:
    context.log.info("at work on the first")


@dg.op(ins={"start": dg.In(dg.Nothing)}, tags=Compute(cores=2, memory_mib=1024).tags())
def second() -> None:
    pass


@dg.op(ins={"start": dg.In(dg.Nothing)})
def cheap() -> None:
    pass


def three_steps() -> dg.JobDefinition:
    environment = Environment.read({"SERVE_TOKEN": "secret"})
    variables = ["STORAGE_ROOT", "MODEL_STORE", "PIPELINE_CONFIG", "DATASET", "DATASET_DIR"]
    executor = engine.cluster_executor(environment, [], variables, {"second": {"cores": 1, "gpus": 1}}, None)
    config = {"address": {"env": ADDRESS}, "resources": {"anywhere": 1}, "env_vars": ["ITS_OWN=1"]}

    @dg.job(executor_def=executor.configured({"ray": config}))
    def job() -> None:
        cheap(second(first()))

    return job


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    with ray_jobs() as found:
        yield found


@pytest.fixture
def handler(jobs) -> engine.RaySteps:
    return engine.RaySteps(Client(jobs.address), RayExecutorConfig(), [])


def step_of(run: str) -> Any:
    """As much of a step as a look at its job takes."""
    return SimpleNamespace(
        execute_step_args=SimpleNamespace(run_id=run, step_keys_to_execute=["some_step"], known_state=None)
    )


def submitted(handler: engine.RaySteps, jobs: Jobs, command: str) -> Any:
    """A step whose job is this command."""
    step = step_of("a run")
    name = handler._get_ray_job_submission_id(step)
    jobs.add({"submission_id": name, "entrypoint": command, "metadata": {}, "runtime_env": {"env_vars": {}}})
    return step


def test_each_step_gets_what_it_declares_and_nothing_of_others(tmp_path, monkeypatch, jobs, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv(ADDRESS, jobs.address)
    given = {"STORAGE_ROOT": "here", "MODEL_STORE": "s3://bucket/models", "PIPELINE_CONFIG": "./some.yaml"}
    for name, value in {**given, "DATASET": "mnist", "SERVE_TOKEN": "secret"}.items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.local_temp() as instance:
        result = dg.execute_job(dg.reconstructable(three_steps), instance)
        assert result.success
        told = [entry.message for entry in instance.all_logs(result.run_id, of_type=None)]
    # What steps elsewhere log is seen where the run is.
    assert "first: at work on the first\n" in capfd.readouterr().err
    [of_first, of_second] = jobs.submitted
    # A step's own tag for Ray has custom resources; the rest is what it declares.
    assert (of_first["entrypoint_num_cpus"], of_first["entrypoint_memory"]) == (1, 512 * 2**20)
    assert of_first["entrypoint_resources"] == {"anywhere": 1, "scanner": 1}
    assert of_second["entrypoint_resources"] == {"anywhere": 1}
    amounts = tuple(of_second[f"entrypoint_{name}"] for name in ("num_cpus", "num_gpus", "memory"))
    assert amounts == (1, 1, 1024 * 2**20)
    variables = of_second["runtime_env"]["env_vars"]
    assert variables["PATH"] == f"{Path(sys.executable).parent}:${{PATH}}"
    assert variables["OMP_NUM_THREADS"] == "1"
    assert variables["ITS_OWN"] == "1"
    # Relative paths begin here, and not where Ray was started.
    assert variables["STORAGE_ROOT"] == str(tmp_path / "here")
    assert variables["PIPELINE_CONFIG"] == str(tmp_path / "some.yaml")
    assert variables["MODEL_STORE"] == "s3://bucket/models"
    assert variables["DATASET"] == "mnist"
    # What the environment of `ray start` may hold stays without effect.
    assert variables["DATASET_DIR"] == variables["EXECUTOR_CONFIG"] == ""
    assert variables["EXECUTOR"] == "multiprocess"
    assert "secret" not in json.dumps(jobs.submitted)
    [asked] = [message for message in told if message.startswith("asks ") and "1024 MiB" in message]
    assert f"asks {jobs.address} for 1 core, 1024 MiB of memory, 1 GPU, as the job dagster-step-" in asked
    assert "No host has that much (1 with 2 cores, 4096 MiB, 0 GPUs), so it waits for one that has" in asked


def test_a_job_that_outlived_its_run_is_stopped_before_its_step_begins_again(monkeypatch, jobs, handler):
    monkeypatch.setenv(ADDRESS, jobs.address)

    def before(run: dg.DagsterRun) -> str | None:
        """The job that is stopped before the first attempt of the run."""
        jobs.stopped.clear()
        context: Any = SimpleNamespace(instance=instance, dagster_run=run, **vars(step_of(run.run_id)))
        for name in handler._jobs_before(context, "second"):
            handler._stop_job(context, "second", name)
        return jobs.stopped[0] if jobs.stopped else None

    for name in ("stray", "of-another-step"):
        waits: dict[str, Any] = {"submission_id": name, "entrypoint": "exec sleep 600", "metadata": {}}
        jobs.add(waits | {"runtime_env": {"env_vars": {}}})
    with dg.DagsterInstance.local_temp() as instance:
        ended = instance.create_run_for_job(three_steps(), status=dg.DagsterRunStatus.FAILURE)
        for step, name in {"second": "stray", "first": "of-another-step"}.items():
            where = {RAY_ADDRESS: dg.MetadataValue.text(jobs.address), RAY_JOB: dg.MetadataValue.text(name)}
            instance.report_engine_event("asks", ended, EngineEventData(where), step_key=step)
        again = instance.create_run_for_job(three_steps(), parent_run_id=ended.run_id, root_run_id=ended.run_id)
        lost = StepRetryData(SerializableErrorInfo("it was silent, and counted as lost", [], None))
        kind = dg.DagsterEventType.STEP_UP_FOR_RETRY.value
        event = dg.DagsterEvent(kind, ended.job_name, step_key="second", event_specific_data=lost)
        instance.report_dagster_event(event, ended.run_id)
        third = instance.create_run_for_job(three_steps(), parent_run_id=again.run_id, root_run_id=ended.run_id)
        assert before(third) == "stray"
        assert jobs.processes["stray"].poll() is not None  # it was waited for
        assert before(again) is None
        assert before(ended) is None  # it is no retry of any
    assert jobs.processes["of-another-step"].poll() is None


def test_a_job_that_was_only_silent_is_stopped_before_the_next_attempt(handler, jobs, monkeypatch):
    """It counted as lost, and trains on; the attempt after it never reached the cluster."""
    monkeypatch.setenv(ADDRESS, jobs.address)
    step = submitted(handler, jobs, "exec sleep 600")
    first = handler._get_ray_job_submission_id(step)
    retries = SimpleNamespace(get_attempt_count=lambda _: 2)
    step.execute_step_args.known_state = SimpleNamespace(get_retry_state=lambda: retries)
    with dg.DagsterInstance.ephemeral() as instance:
        step.instance, step.dagster_run = instance, instance.create_run_for_job(three_steps())
        assert handler._jobs_before(step, "some_step") == [first, f"{first}-1"]
        for name in handler._jobs_before(step, "some_step"):
            handler._stop_job(step, "some_step", name)
    assert jobs.stopped == [first]


def test_hosts_elsewhere_need_a_bucket_and_postgres(monkeypatch, jobs):
    monkeypatch.setenv(ADDRESS, jobs.address)
    jobs.hosts.append(jobs.hosts[0] | {"node_ip": "192.0.2.77"})
    with dg.DagsterInstance.local_temp() as instance, pytest.raises(dg.DagsterInvariantViolationError) as refused:
        dg.execute_job(dg.reconstructable(three_steps), instance, raise_on_error=True)
    assert "the Ray cluster has the hosts 127.0.0.1, 192.0.2.77, and these are missing: " in str(refused.value)
    assert "Set STORAGE_ROOT to a bucket" in str(refused.value)
    assert "Use Postgres" in str(refused.value)
    assert jobs.submitted == []


def test_a_job_that_failed_says_why_in_short(handler, jobs):
    step = submitted(handler, jobs, "exit 3")
    [process] = jobs.processes.values()
    process.wait()
    jobs.message = "a long log\n" * 10_000 + "and its end"
    health = handler.check_step_health(step)
    assert not health.is_healthy
    assert (health.unhealthy_reason or "").endswith("and its end")
    assert "FAILED (THE_KIND): and its end\n" in (health.unhealthy_reason or "")
    assert len(health.unhealthy_reason or "") < 2 * engine.LOG_CHARACTERS
    jobs.answer = "STOPPED"
    assert "STOPPED" in (handler.check_step_health(step).unhealthy_reason or "")


def test_only_a_job_that_is_unknown_counts_as_lost_at_once(handler, jobs, monkeypatch):
    """A busy server answered as if it were gone, and a second training would have begun beside the first."""
    step = submitted(handler, jobs, "sleep 600")
    now = 1000.0
    monkeypatch.setattr(engine.time, "monotonic", lambda: now)
    assert handler.check_step_health(step).is_healthy
    jobs.status = 500
    assert handler.check_step_health(step).is_healthy
    now += engine.LOST_SECONDS - 1
    assert handler.check_step_health(step).is_healthy
    jobs.status = 200
    now += engine.HEALTH_SECONDS  # it is not asked again before
    assert handler.check_step_health(step).is_healthy
    jobs.status = 503
    assert handler.check_step_health(step).is_healthy  # it answered in between
    now += engine.LOST_SECONDS
    gone = handler.check_step_health(step)
    assert f"has not answered for {engine.LOST_SECONDS} s" in (gone.unhealthy_reason or "")
    jobs.status = 200
    now += engine.HEALTH_SECONDS
    unknown = handler.check_step_health(step_of("another run"))
    assert "does not know the job dagster-step-" in (unknown.unhealthy_reason or "")


def test_a_silent_cluster_is_waited_for_so_long_and_no_longer(handler, jobs, monkeypatch):
    step = submitted(handler, jobs, "sleep 600")
    monkeypatch.setattr(ray_client, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(engine, "LOST_SECONDS", 0)
    jobs.status = SILENT
    assert "Read timed out" in (handler.check_step_health(step).unhealthy_reason or "")


def test_a_cluster_that_is_busy_when_a_step_begins_does_not_end_the_run(monkeypatch, jobs):
    monkeypatch.setenv(ADDRESS, jobs.address)
    monkeypatch.setattr(engine, "HEALTH_SECONDS", 1)
    jobs.refused = 1
    with dg.DagsterInstance.local_temp() as instance:
        result = dg.execute_job(dg.reconstructable(three_steps), instance)
        told = [entry.message for entry in instance.all_logs(result.run_id)]
    assert result.success
    assert any(line.startswith("could not be submitted, and is tried again: Request failed") for line in told)
    assert len(jobs.submitted) == 2


def test_no_cluster_is_said_in_one_sentence(tmp_path):
    """From the command line, without a traceback."""
    file = tmp_path / "executor.yaml"
    file.write_text("ray: {address: 'http://127.0.0.1:1'}")
    variables = {"EXECUTOR": "ray", "EXECUTOR_CONFIG": str(file), "STORAGE_ROOT": str(tmp_path / "storage")}
    variables |= {"DAGSTER_HOME": str(tmp_path), "PYTHONWARNINGS": "ignore", "DATASET_SOURCE": "sample"}
    command = [sys.executable, "-m", "mnist_pipeline", "run"]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "Failed to connect to Ray at address: http://127.0.0.1:1. Is its head up (`ray start --head`)?" in said
    assert f"`ray: address` in EXECUTOR_CONFIG ({file})" in said
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.FAILURE]
