"""A look at whether a process, or a step in a place of its own, is at work."""

from typing import NamedTuple

from mnist_pipeline.defs.engines.traces import CONTAINER, RAY_JOB, Elsewhere


class Finding(NamedTuple):
    """The state of a process or a step: at work, gone, or None where it cannot be told."""

    is_alive: bool | None
    words: str


def find_step(step: str, place: Elsewhere) -> Finding:
    """Look for a step that was launched in a place of its own and has not ended by its own account."""
    if place.kind == RAY_JOB:
        return _find_job(step, place.name, place.cluster)
    if place.kind == CONTAINER:
        return _find_container(step, place.name)
    return Finding(None, f"{step} in {place.kind} {place.name} is looked for by the launcher of Kubernetes only")


def _find_container(step: str, container_id: str) -> Finding:
    where = f"{step} in container {container_id[:12]}"
    try:
        from docker.errors import DockerException

        from mnist_pipeline.defs.engines.containers import find_container
    except ImportError:
        return Finding(None, f"{where} cannot be looked for: the extra `docker` is not installed here")
    try:
        container = find_container(container_id)
    except DockerException as error:
        return Finding(None, f"{where} cannot be looked for: {error}")
    if container is None or container.status not in ("created", "running", "restarting", "paused"):
        return Finding(False, f"{where} has ended")
    return Finding(True, f"{where} is at work")


def _find_job(step: str, job: str, cluster: str) -> Finding:
    where = f"{step} in Ray job {job} of {cluster}"
    try:
        from mnist_pipeline.defs.engines.ray_client import UNREACHABLE, Client
    except ImportError:
        return Finding(None, f"{where} cannot be looked for: the extra `ray` is not installed here")
    try:
        found = Client(cluster).find_job(job)
    except UNREACHABLE as error:
        return Finding(None, f"{where} cannot be looked for: {error}")
    if found is None or found.status.is_terminal():
        return Finding(False, f"{where} has ended")
    return Finding(True, f"{where} is at work")
