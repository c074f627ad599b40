"""Which runs count as alive. (That a dead one is started again: test_live.)"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.execution.plan.objects import StepRetryData, StepSuccessData
from dagster._core.launcher import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._utils.error import SerializableErrorInfo

from mnist_pipeline.defs import run_launcher
from mnist_pipeline.defs.run_launcher import MonitoredRunLauncher


@dg.job
def some_job():
    pass


@pytest.fixture
def instance(tmp_path) -> Iterator[dg.DagsterInstance]:
    """With the project's own settings."""
    shutil.copy(Path(run_launcher.__file__).parents[2] / "dagster.yaml", tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def status(instance: dg.DagsterInstance, pids: list[int], **tags: str) -> WorkerStatus:
    run = instance.create_run_for_job(some_job, tags=tags)
    for pid in pids:
        instance.report_engine_event("a process", run, EngineEventData.in_process(pid))
    return instance.run_launcher.check_run_worker_health(run).status


def test_it_is_the_launcher_of_the_project(instance):
    assert isinstance(instance.run_launcher, MonitoredRunLauncher)
    assert instance.run_launcher.supports_check_run_worker_health


def test_a_run_is_alive_while_any_of_its_processes_is(instance, process):
    assert status(instance, [process.pid]) == WorkerStatus.RUNNING
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    assert status(instance, [gone.pid]) == WorkerStatus.FAILED
    assert status(instance, [gone.pid, process.pid]) == WorkerStatus.RUNNING
    process.kill()
    while status(instance, [process.pid]) == WorkerStatus.RUNNING:  # until it is a zombie: nobody has waited for it
        pass
    assert process.returncode is None


def step_event(instance: dg.DagsterInstance, run: dg.DagsterRun, kind: dg.DagsterEventType, pid: int) -> None:
    data: Any = EngineEventData.in_process(pid)
    if kind == dg.DagsterEventType.STEP_SUCCESS:
        data = StepSuccessData(duration_ms=1.0)
    elif kind == dg.DagsterEventType.STEP_UP_FOR_RETRY:
        data = StepRetryData(SerializableErrorInfo("a test", [], None))
    event = dg.DagsterEvent(kind.value, run.job_name, step_key="some_step", event_specific_data=data)
    instance.report_dagster_event(event, run.run_id)


def test_a_step_that_outlived_its_run_is_let_finish_and_then_ended(instance, process):
    """Only the run's own process was killed: the step trains on, and then waits for ever for its events to be taken."""
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    run = instance.create_run_for_job(some_job)
    instance.report_engine_event("the run", run, EngineEventData.in_process(gone.pid))
    health = instance.run_launcher.check_run_worker_health
    step_event(instance, run, dg.DagsterEventType.STEP_WORKER_STARTED, process.pid)
    assert health(run).status == WorkerStatus.RUNNING
    step_event(instance, run, dg.DagsterEventType.STEP_UP_FOR_RETRY, process.pid)
    step_event(instance, run, dg.DagsterEventType.STEP_WORKER_STARTED, process.pid)
    assert health(run).status == WorkerStatus.RUNNING  # it is tried again
    step_event(instance, run, dg.DagsterEventType.STEP_SUCCESS, process.pid)
    assert health(run).status == WorkerStatus.FAILED
    assert process.wait() != 0


def test_another_process_of_the_same_number_is_not_the_run(instance, process, monkeypatch):
    monkeypatch.setattr(run_launcher, "CLOCK_TOLERANCE_SECONDS", -3600)  # as if it had started an hour after the report
    assert status(instance, [process.pid]) == WorkerStatus.FAILED


def test_nothing_is_said_about_runs_that_cannot_be_looked_into(instance):
    assert status(instance, []) == WorkerStatus.RUNNING
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    for host, expected in (("localhost", WorkerStatus.FAILED), ("code-server", WorkerStatus.RUNNING)):
        tags = {GRPC_INFO_TAG: json.dumps({"host": host, "port": 4000})}
        assert status(instance, [gone.pid], **tags) == expected


def test_an_instance_that_was_made_before_the_launcher_moved_still_has_it(tmp_path):
    settings = (Path(run_launcher.__file__).parents[2] / "dagster.yaml").read_text()
    assert "module: mnist_pipeline.defs.run_launcher" in settings
    (tmp_path / "dagster.yaml").write_text(settings.replace("mnist_pipeline.defs.run", "mnist_pipeline.run"))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert isinstance(instance.run_launcher, MonitoredRunLauncher)
