"""Dagster's launcher for one machine, with the health check that it lacks."""

import dagster as dg
import psutil
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus

CLOCK_TOLERANCE_SECONDS = 2
"""Between the start of a process, by the kernel, and the event in which it reports itself."""


class MonitoredRunLauncher(DefaultRunLauncher):
    """Launches runs as processes of the code server, and tells run monitoring when they are gone.

    Without it a run whose processes died together with the code server (power loss, out of memory, kill -9) counts as
    in progress for ever, and automation waits for it for ever. A run is alive while any of its processes is: a step
    that outlived the others is let finish, so that nothing is done twice.

    For code server, daemon and runs on one machine; Dagster's launchers for containers have checks of their own.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """RUNNING, or FAILED once none of the processes that reported themselves in the run's events exists."""
        kinds = {dg.DagsterEventType.ENGINE_EVENT, dg.DagsterEventType.STEP_WORKER_STARTED}
        entries = self._instance.all_logs(run.run_id, of_type=kinds)
        processes = {
            int(str(event.engine_event_data.metadata["pid"].value)): entry.timestamp
            for entry in entries
            if (event := entry.dagster_event) and "pid" in event.engine_event_data.metadata
        }
        if alive := [pid for pid, reported_at in processes.items() if _is_alive(pid, reported_at)]:
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"processes {alive}")
        return CheckRunHealthResult(WorkerStatus.FAILED, f"none of its processes {list(processes)} is there any more")


def _is_alive(pid: int, reported_at: float) -> bool:
    """Whether `pid` is still the process that reported itself then, and not a later one of the same number."""
    try:
        process = psutil.Process(pid)
        return (
            process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= reported_at + CLOCK_TOLERANCE_SECONDS
        )
    except psutil.NoSuchProcess:
        return False
