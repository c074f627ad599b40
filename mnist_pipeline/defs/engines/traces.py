"""The processes, containers and jobs that work for a run, as its events tell of them."""

import json
from typing import Any, NamedTuple

import dagster as dg
from dagster._core.storage.tags import GRPC_INFO_TAG  # Dagster has no public name for it

from mnist_pipeline.defs.engines.host import Host
from mnist_pipeline.defs.engines.marking import HOST, PID

CONTAINER = "Docker container id"
"""The name in the metadata of the event by which dagster-docker launches a step."""

KUBERNETES_JOB = "Kubernetes Job name"
"""The name in the metadata of the event by which dagster-k8s launches a step, or a whole run."""

RAY_JOB, RAY_ADDRESS = "Ray job", "Ray cluster"
"""The names in the metadata of the event by which a step is submitted to a cluster."""

STARTS = {
    dg.DagsterEventType.ENGINE_EVENT,
    dg.DagsterEventType.STEP_WORKER_STARTING,
    dg.DagsterEventType.STEP_WORKER_STARTED,
}
STEP_ENDS = {dg.DagsterEventType.STEP_SUCCESS, dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.STEP_UP_FOR_RETRY}


MOST_RETRIES = 10
"""So many runs before one are looked at: Dagster starts a lost run again two times, people a few more."""


class Elsewhere(NamedTuple):
    """The place of a step that is not beside its run."""

    kind: str
    """CONTAINER, KUBERNETES_JOB or RAY_JOB."""
    name: str
    """The number of a container, or the name of a job."""
    cluster: str = ""
    """The address of the Ray cluster that has the job."""


class Traces(NamedTuple):
    """The places where a run is at work, as far as it said."""

    server: str | None
    """The host of the code server that launched it; None of a run from a command line, or over a socket."""
    host: Host | None
    """The place of the run's process; None if it has not said so, which earlier code never did."""
    processes: dict[int, tuple[float, str | None]]
    """The processes in that place by their numbers: when they reported themselves, and for which step."""
    elsewhere: dict[str, Elsewhere]
    """The place of each step that was launched in one of its own and has not ended."""
    ended: set[str | None]
    """The steps that have ended."""
    unfinished: dict[str, Elsewhere]
    """The last place of each step that had one of its own and has not succeeded, by whatever account it ended."""
    pod: str | None = None
    """The Kubernetes job that the run itself is, None of others."""


def left_behind(instance: dg.DagsterInstance, run: dg.DagsterRun, step: str) -> list[Elsewhere]:
    """Return the places where the step may be at work still, for the runs that this one is a retry of.

    A step whose engine gave no answer counts as failed, and may be at work.
    """
    found, before = list[Elsewhere](), run
    for _ in range(MOST_RETRIES):
        parent = instance.get_run_by_id(before.parent_run_id) if before.parent_run_id else None
        if parent is None:
            break
        if place := read_traces(instance, parent).unfinished.get(step):
            found.append(place)
        before = parent
    return found


def read_traces(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Traces:
    """Read the events of a run, of which there are few of these kinds."""
    traces = Traces(json.loads(run.tags.get(GRPC_INFO_TAG, "{}")).get("host"), None, {}, {}, set(), {})
    for entry in instance.all_logs(run.run_id, of_type=STARTS | STEP_ENDS):
        if (event := entry.dagster_event) is None:
            continue
        step = event.step_key
        if event.event_type in STEP_ENDS:
            traces.ended.add(step)
            traces.elsewhere.pop(step or "", None)
            if event.event_type == dg.DagsterEventType.STEP_SUCCESS:
                traces.unfinished.pop(step or "", None)
            continue
        told: dict[str, Any] = {name: value.value for name, value in event.engine_event_data.metadata.items()}
        if HOST in told:
            traces = traces._replace(host=Host(**told[HOST]))
        if step is None and KUBERNETES_JOB in told:
            traces = traces._replace(pod=told[KUBERNETES_JOB])
        kind = next((kind for kind in (CONTAINER, KUBERNETES_JOB, RAY_JOB) if kind in told), None)
        if step and kind:
            traces.unfinished[step] = traces.elsewhere[step] = Elsewhere(kind, told[kind], told.get(RAY_ADDRESS, ""))
            traces.ended.discard(step)
        elif PID in told and step not in traces.elsewhere:  # that one's number is of its own namespace
            traces.processes[int(told[PID])] = entry.timestamp, step
            traces.ended.discard(step)  # tried again
    return traces
