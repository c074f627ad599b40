"""Dagster's launcher of runs as processes of the code server, with the health check that it lacks."""

from contextlib import suppress

import dagster as dg
import psutil

# Dagster documents launchers as replaceable, but has no public names for these.
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import deserialize_value

from mnist_pipeline.defs.engines.host import Host
from mnist_pipeline.defs.engines.looking import Finding, find_step
from mnist_pipeline.defs.engines.traces import Traces, read_traces

CLOCK_TOLERANCE_SECONDS = 60
"""The kernel's start of a process and the time of its report differ when the clock is set in between."""

SERVER_SECONDS = 10
"""Longer than a code server at work needs for an answer."""

THIS_MACHINE = ("localhost", "127.0.0.1", "::1", None)
"""Hosts of code servers; None: a socket, or a run of a command line."""


class MonitoredRunLauncher(DefaultRunLauncher):
    """Launches runs as processes of the code server, and tells run monitoring when they are gone.

    Without it a run whose processes died together with the code server (power loss, out of memory, kill -9) counts as
    in progress for ever, and automation waits for it for ever. A run is alive while any of its processes is: a step
    that outlived the others is let finish, so that nothing is done twice. Then it is ended: its process would wait for
    ever for the one that took its events.

    Process numbers count only where the run said that it is in this namespace of them; of a run elsewhere the code
    server is asked, of a step in a container Docker, of a job its Ray cluster. What cannot be asked counts as alive. A
    code server knows runs only: a step that outlived its run elsewhere is not seen, and the run is started again
    beside it.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Always true."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Return FAILED once the run's process and all that works for it is known to be gone, else RUNNING."""
        traces = read_traces(self._instance, run)
        worker = self._worker(run, traces)
        if worker.is_alive:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        elsewhere = [find_step(step, place) for step, place in traces.elsewhere.items()]
        for finding in (worker, *elsewhere):
            if finding.is_alive is not False:
                return CheckRunHealthResult(WorkerStatus.RUNNING, finding.words)
        return CheckRunHealthResult(WorkerStatus.FAILED, "; ".join(found.words for found in (worker, *elsewhere)))

    def _worker(self, run: dg.DagsterRun, traces: Traces) -> Finding:
        """Find the process of the run, with those of its steps that are beside it."""
        here = Host.here()
        if traces.pod:  # a command in a pod of the same deployment asks
            return Finding(None, f"it is the job {traces.pod}, which the launcher of Kubernetes looks for")
        if traces.host is None and traces.server not in THIS_MACHINE:  # not begun, or by earlier code
            return self._ask_server(run)
        if traces.host is None or traces.host.is_same(here):
            return _processes_here(traces)
        if traces.host.was_restarted(here):
            return Finding(False, f"{here.name} was started again since, and nothing of before is left")
        if traces.server in THIS_MACHINE and traces.host.name != here.name:  # another one's own address
            return Finding(None, f"it is on {traces.host.name}, and can be looked for only there")
        return self._ask_server(run)

    def _ask_server(self, run: dg.DagsterRun) -> Finding:
        """Ask the code server if the run is one of its processes: those of one that was started again are gone."""
        client = self._get_grpc_client_for_termination(run.run_id)
        if client is None:
            return Finding(None, "it is in another container of this host, and no code server started it")
        try:
            answer = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run.run_id), timeout=SERVER_SECONDS)
        except DagsterUserCodeUnreachableError:
            return Finding(None, f"the code server on {client.host} cannot be reached")
        known = deserialize_value(answer, CanCancelExecutionResult).can_cancel
        return Finding(known, f"the code server on {client.host} does not know it any more")


def _processes_here(traces: Traces) -> Finding:
    alive = {pid: step for pid, (at, step) in traces.processes.items() if _is_alive(pid, at)}
    if not traces.processes or any(step not in traces.ended for step in alive.values()):
        return Finding(True, "at work")
    for pid in alive:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
    return Finding(False, f"none of its processes ({', '.join(map(str, traces.processes))}) is there any more")


def _is_alive(pid: int, reported_at: float) -> bool:
    """Tell whether `pid` is still the process that reported itself then, and not a later one of the same number."""
    try:
        process = psutil.Process(pid)
        return (
            process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= reported_at + CLOCK_TOLERANCE_SECONDS
        )
    except psutil.NoSuchProcess:
        return False
