"""Which runs count as alive. (That a dead one is started again: test_live.)"""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.execution.plan.objects import StepRetryData, StepSuccessData
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._utils.error import SerializableErrorInfo

from mnist_pipeline.defs import run_launcher
from mnist_pipeline.defs.engines.host import Host
from mnist_pipeline.defs.engines.marking import HOST, PID
from mnist_pipeline.defs.engines.traces import CONTAINER, KUBERNETES_JOB, RAY_ADDRESS, RAY_JOB
from mnist_pipeline.defs.run_launcher import MonitoredRunLauncher
from mnist_pipeline.history import end_lost, recover
from mnist_pipeline.problem import Problem
from mnist_pipeline_tests.live import wait_until
from mnist_pipeline_tests.ray_api import ray_jobs


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


HERE = Host.here()
CONTAINER_HERE = HERE._replace(name="c0ffee", machine="", processes="pid:[1]", network="net:[1]")
SIBLING = HERE._replace(processes="pid:[1]")
"""On the same machine, and with its network."""

MACHINE = Host("a", "id", "this", "pid:[1]", "net:[1]")
CONTAINED = Host("c0ffee", "", "this", "pid:[2]", "net:[2]")


def marked(instance: dg.DagsterInstance, host: Host, pid: int, **tags: str) -> CheckRunHealthResult:
    """The health of a run whose process said where it is."""
    run = instance.create_run_for_job(some_job, tags=tags)
    mark(instance, run, host, pid)
    return instance.run_launcher.check_run_worker_health(run)


def mark(instance: dg.DagsterInstance, run: dg.DagsterRun, host: Host, pid: int) -> None:
    metadata = {PID: dg.MetadataValue.text(str(pid)), HOST: dg.MetadataValue.json(host._asdict())}
    instance.report_engine_event("a process", run, EngineEventData(metadata))


def test_process_numbers_count_only_where_the_run_is(instance, process):
    """Process 1 is everywhere: that of another container would be alive for ever."""
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    assert marked(instance, HERE, process.pid).status == WorkerStatus.RUNNING
    assert marked(instance, HERE, gone.pid).status == WorkerStatus.FAILED
    assert marked(instance, HERE._replace(name="before-it-was-renamed"), gone.pid).status == WorkerStatus.FAILED
    for pid in (1, gone.pid):  # of a command line in a container: nobody can be asked
        elsewhere = marked(instance, CONTAINER_HERE, pid)
        assert elsewhere.status == WorkerStatus.RUNNING
        assert elsewhere.msg == "it is on c0ffee, and can be looked for only there"
        beside = marked(instance, SIBLING, pid)
        assert beside.status == WorkerStatus.RUNNING
        assert beside.msg == "it is in another container of this host, and no code server started it"


@pytest.mark.parametrize(
    ("then", "now", "expected"),
    [
        (MACHINE._replace(boot="before"), MACHINE, True),
        (MACHINE, MACHINE._replace(processes="pid:[2]", network="net:[2]"), False),  # a sandbox
        (CONTAINED._replace(processes="pid:[1]", network="net:[1]"), CONTAINED, True),
        (CONTAINED._replace(processes="pid:[1]"), CONTAINED, False),  # both have the network of the machine
        (CONTAINED._replace(name="beef", processes="pid:[1]", network="net:[1]"), CONTAINED, False),
    ],
)
def test_what_was_started_again_has_nothing_left_of_before(then, now, expected):
    assert then.was_restarted(now) == expected
    assert not then.is_same(now)


def test_a_machine_that_was_started_again_has_no_run(instance, monkeypatch):
    monkeypatch.setattr(Host, "here", lambda: MACHINE)
    restarted = marked(instance, MACHINE._replace(boot="before"), 1)
    assert restarted.status == WorkerStatus.FAILED
    assert "was started again since" in (restarted.msg or "")


def test_a_run_of_a_machine_that_is_gone_is_ended_when_somebody_says_so(instance, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    run = instance.create_run_for_job(some_job, status=dg.DagsterRunStatus.STARTED)
    mark(instance, run, CONTAINER_HERE, 1)
    recover()
    assert "it is on c0ffee, and can be looked for only there; where it trains" in capsys.readouterr().out
    end_lost(run.run_id)
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE
    for unknown in (run.run_id, "no-such-run"):
        with pytest.raises(Problem, match="in progress"):
            end_lost(unknown)


def test_of_a_run_elsewhere_its_code_server_is_asked(instance, process, tmp_path):
    (tmp_path / "empty.py").write_text("import dagster as dg\ndefs = dg.Definitions()\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tags = {GRPC_INFO_TAG: json.dumps({"host": "127.0.0.1", "port": port})}
    unreachable = marked(instance, SIBLING, process.pid, **tags)
    assert unreachable.status == WorkerStatus.RUNNING
    assert unreachable.msg == "the code server on 127.0.0.1 cannot be reached"
    command = [sys.executable, "-m", "dagster", "api", "grpc", "-h", "127.0.0.1", "-p", str(port), "-f", "empty.py"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, "the server to listen")
            health = marked(instance, SIBLING, process.pid, **tags)  # it was started again, and knows nothing
            other = marked(instance, CONTAINER_HERE, process.pid, **tags)  # which has a 127.0.0.1 of its own
        finally:
            server.kill()
    assert health.status == WorkerStatus.FAILED
    assert health.msg == "the code server on 127.0.0.1 does not know it any more"
    assert other.status == WorkerStatus.RUNNING


def test_a_run_lives_while_its_step_may_be_at_work_in_a_container(instance, monkeypatch):
    """Its number there is 1, which says nothing here, and Docker cannot be asked."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    run = instance.create_run_for_job(some_job)
    instance.report_engine_event("the run", run, EngineEventData.in_process(gone.pid))
    launched = EngineEventData({CONTAINER: dg.MetadataValue.text("0123456789abcdef")})
    kind = dg.DagsterEventType.STEP_WORKER_STARTING.value
    event = dg.DagsterEvent(kind, run.job_name, step_key="some_step", event_specific_data=launched)
    instance.report_dagster_event(event, run.run_id)
    step_event(instance, run, dg.DagsterEventType.STEP_WORKER_STARTED, 1)
    health = instance.run_launcher.check_run_worker_health(run)
    assert health.status == WorkerStatus.RUNNING
    assert (health.msg or "").startswith("some_step in container 0123456789ab cannot be looked for: ")
    step_event(instance, run, dg.DagsterEventType.STEP_SUCCESS, 1)
    assert instance.run_launcher.check_run_worker_health(run).status == WorkerStatus.FAILED


def test_a_run_in_a_pod_is_left_to_the_launcher_of_kubernetes(instance):
    """`recover` in the pod of the code location would end it: that code server knows nothing of it."""
    run = instance.create_run_for_job(some_job, status=dg.DagsterRunStatus.STARTED)
    created = EngineEventData({KUBERNETES_JOB: dg.MetadataValue.text("dagster-run-1")})
    instance.report_engine_event("Creating Kubernetes run worker job", run, created)
    mark(instance, run, CONTAINER_HERE, 1)
    health = instance.run_launcher.check_run_worker_health(run)
    assert health.status == WorkerStatus.RUNNING
    assert health.msg == "it is the job dagster-run-1, which the launcher of Kubernetes looks for"


def test_a_lost_run_names_what_may_still_be_at_work(instance, monkeypatch, capsys):
    monkeypatch.setenv("DAGSTER_HOME", instance.root_directory)
    run = instance.create_run_for_job(some_job, status=dg.DagsterRunStatus.STARTED)
    where = {RAY_ADDRESS: dg.MetadataValue.text("http://head:8265"), RAY_JOB: dg.MetadataValue.text("a-job")}
    instance.report_engine_event("some_step asks", run, EngineEventData(where), step_key="some_step")
    end_lost(run.run_id)
    assert (
        "some_step may still be at work, as Ray job a-job of http://head:8265: stop it there" in capsys.readouterr().out
    )


def test_a_run_lives_while_its_step_may_be_at_work_as_a_job_of_ray(instance, monkeypatch):
    """The cluster is asked; while it cannot be, the step counts as alive."""
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    run = instance.create_run_for_job(some_job)
    instance.report_engine_event("the run", run, EngineEventData.in_process(gone.pid))

    def submitted(address: str, job: str) -> CheckRunHealthResult:
        """The run's health after its step was submitted there."""
        where = {RAY_ADDRESS: dg.MetadataValue.text(address), RAY_JOB: dg.MetadataValue.text(job)}
        instance.report_engine_event("some_step asks", run, EngineEventData(where), step_key="some_step")
        step_event(instance, run, dg.DagsterEventType.STEP_WORKER_STARTED, 1)  # a number of another host
        return instance.run_launcher.check_run_worker_health(run)

    unreachable = submitted("http://127.0.0.1:1", "a-job")
    assert unreachable.status == WorkerStatus.RUNNING
    where = "some_step in Ray job a-job of http://127.0.0.1:1"
    assert (unreachable.msg or "").startswith(f"{where} cannot be looked for: Failed to connect")
    with ray_jobs() as jobs:
        job = {"submission_id": "a-job", "entrypoint": "exec sleep 600", "metadata": {}}
        jobs.add(job | {"runtime_env": {"env_vars": {}}})
        at_work = submitted(jobs.address, "a-job")
        assert (at_work.status, at_work.msg) == (
            WorkerStatus.RUNNING,
            f"some_step in Ray job a-job of {jobs.address} is at work",
        )
        jobs.processes["a-job"].kill()
        jobs.processes["a-job"].wait()
        ended = submitted(jobs.address, "a-job")
        assert ended.status == WorkerStatus.FAILED
        assert f"some_step in Ray job a-job of {jobs.address} has ended" in (ended.msg or "")
        assert submitted(jobs.address, "unknown").status == WorkerStatus.FAILED
        monkeypatch.setitem(sys.modules, "mnist_pipeline.defs.engines.ray_client", None)
        assert "the extra `ray` is not installed here" in (submitted(jobs.address, "a-job").msg or "")


def test_an_instance_that_was_made_before_the_launcher_moved_still_has_it(tmp_path):
    settings = (Path(run_launcher.__file__).parents[2] / "dagster.yaml").read_text()
    assert "module: mnist_pipeline.defs.run_launcher" in settings
    (tmp_path / "dagster.yaml").write_text(settings.replace("mnist_pipeline.defs.run", "mnist_pipeline.run"))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert isinstance(instance.run_launcher, MonitoredRunLauncher)
