"""Which runs count as alive. (That a dead one is started again: test_live.)"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.launcher import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG

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
