"""Dagster's launcher for one machine, with the health check that it lacks."""

import json
from contextlib import suppress

import dagster as dg
import psutil

# Dagster documents launchers as replaceable, but has no public names for these.
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG

CLOCK_TOLERANCE_SECONDS = 60
"""The kernel's start of a process and the time of its report differ when the clock is set in between."""

STEP_ENDS = {dg.DagsterEventType.STEP_SUCCESS, dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.STEP_UP_FOR_RETRY}

THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


class MonitoredRunLauncher(DefaultRunLauncher):
    """Launches runs as processes of the code server, and tells run monitoring when they are gone.

    Without it a run whose processes died together with the code server (power loss, out of memory, kill -9) counts as
    in progress for ever, and automation waits for it for ever. A run is alive while any of its processes is: a step
    that outlived the others is let finish, so that nothing is done twice. Then it is ended: its process would wait for
    ever for the one that took its events.

    For code server, daemon and command line on one machine. Runs of a code server elsewhere count as alive; Dagster's
    launchers for containers have checks of their own.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Always true."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Return FAILED once none of the processes that the run's events name exists, else RUNNING."""
        server = json.loads(run.tags.get(GRPC_INFO_TAG, "{}")).get("host", "localhost")  # none: from a command line
        if server not in THIS_MACHINE:
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"on {server}, which cannot be looked into")
        kinds = {dg.DagsterEventType.ENGINE_EVENT, dg.DagsterEventType.STEP_WORKER_STARTED}
        processes: dict[int, tuple[float, str | None]] = {}
        ended: set[str | None] = set()
        for entry in self._instance.all_logs(run.run_id, of_type=kinds | STEP_ENDS):
            if (event := entry.dagster_event) is None:
                continue
            if event.event_type in STEP_ENDS:
                ended.add(event.step_key)
            elif "pid" in event.engine_event_data.metadata:
                pid = int(str(event.engine_event_data.metadata["pid"].value))
                processes[pid] = entry.timestamp, event.step_key
                ended.discard(event.step_key)  # tried again
        alive = {pid: step for pid, (reported_at, step) in processes.items() if _is_alive(pid, reported_at)}
        if processes and all(step in ended for step in alive.values()):
            for pid in alive:
                with suppress(psutil.NoSuchProcess):
                    psutil.Process(pid).kill()
            gone = ", ".join(map(str, processes))
            return CheckRunHealthResult(WorkerStatus.FAILED, f"none of its processes ({gone}) is there any more")
        return CheckRunHealthResult(WorkerStatus.RUNNING)


def _is_alive(pid: int, reported_at: float) -> bool:
    """Tell whether `pid` is still the process that reported itself then, and not a later one of the same number."""
    try:
        process = psutil.Process(pid)
        return (
            process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= reported_at + CLOCK_TOLERANCE_SECONDS
        )
    except psutil.NoSuchProcess:
        return False
