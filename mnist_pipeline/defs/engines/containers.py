"""Steps in containers of Docker, each with the cores, the memory and the GPUs that it declares.

The executor of the package dagster-docker gives all steps the same container, and leaves what outlived its run.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import dagster as dg
import docker
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.step_delegating import CheckStepHealthResult, StepDelegatingExecutor, StepHandlerContext
from dagster_docker import docker_executor
from dagster_docker.container_context import DockerContainerContext
from dagster_docker.docker_executor import DockerStepHandler
from docker.models.containers import Container

from mnist_pipeline.defs.engines.compute import PREFIX
from mnist_pipeline.defs.engines.shared_or_own import Overrides, SharedOrOwn, declared

HEALTH_SECONDS = 5
"""Between two looks whether the containers are at work."""

LOG_LINES, LOG_CHARACTERS = 5, 1000
"""The end of the log of a container that broke down: so much of it is told."""

DOCKER_SECONDS = 10
"""Longer than Docker needs for an answer; run monitoring waits for it."""

DECLARED = frozenset({"nano_cpus", "mem_limit", "memswap_limit", "device_requests"})
"""The options that a step declares beside its asset: in `container_kwargs` they would be ignored."""

RUN_LABEL, STEP_LABEL = f"{PREFIX}run", f"{PREFIX}step"


class ContainerSteps(DockerStepHandler):
    """Launches each step in a container of its own."""

    def __init__(self, image: str | None, container: DockerContainerContext, variables: Sequence[str]) -> None:
        """`variables` are the names that containers get from this process, of those that are set."""
        super().__init__(image, container)
        self._variables = variables

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Start the step, after those containers of it have ended whose run did."""
        client = self._get_client(self._get_docker_container_context(step_handler_context))
        step = self._get_step_key(step_handler_context)
        for container in client.containers.list(all=True, filters={"label": f"{STEP_LABEL}={step}"}):
            run = step_handler_context.instance.get_run_by_id(container.labels[RUN_LABEL])
            if run is None or not run.is_finished:  # None: of another deployment that shares this Docker
                continue
            if container.status == "running":
                step_handler_context.instance.report_engine_event(
                    f"{step} was still at work in container {container.short_id} for a run that had ended: it is ended",
                    step_handler_context.dagster_run,
                )
                container.remove(force=True)
            elif container.attrs["State"]["ExitCode"] == 0:
                container.remove()  # of the others `docker logs` may tell something
        yield from super().launch_step(step_handler_context)

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        """Tell whether the step is at work, or was done; of one that broke down, why."""
        health = super().check_step_health(step_handler_context)
        if health.is_healthy:
            return health
        client = self._get_client(self._get_docker_container_context(step_handler_context))
        try:
            container = client.containers.get(self._get_container_name(step_handler_context))
        except docker.errors.NotFound:
            return health
        if container.attrs["State"]["OOMKilled"]:
            why = declared(step_handler_context).outgrown
        else:
            last = container.logs(tail=LOG_LINES).decode(errors="replace").strip()
            why = f"{health.unhealthy_reason} `docker logs {container.short_id}` ends with: {last[-LOG_CHARACTERS:]}"
        return CheckStepHealthResult.unhealthy(why)

    def _get_docker_container_context(self, step_handler_context: StepHandlerContext) -> DockerContainerContext:
        step = self._get_step_key(step_handler_context)
        shared = super()._get_docker_container_context(step_handler_context)
        compute = declared(step_handler_context)
        labels = shared.container_kwargs.get("labels") or {}
        options: dict[str, Any] = {
            "mem_limit": f"{compute.memory_mib}m",
            "memswap_limit": f"{compute.memory_mib}m",  # no swap
            "labels": {
                **(labels if isinstance(labels, dict) else dict.fromkeys(labels, "")),  # Docker takes a list, too
                RUN_LABEL: step_handler_context.dagster_run.run_id,
                STEP_LABEL: step,
            },
        }
        if compute.gpus:
            options["device_requests"] = [docker.types.DeviceRequest(count=compute.gpus, capabilities=[["gpu"]])]
        variables = [name for name in self._variables if name in os.environ]
        return shared.merge(DockerContainerContext(env_vars=variables, container_kwargs=options))

    def _create_step_container(
        self,
        client: docker.DockerClient,
        container_context: DockerContainerContext,
        step_image: str,
        step_handler_context: StepHandlerContext,
    ) -> Container:
        compute = declared(step_handler_context)
        cores = min(compute.cores, client.info()["NCPU"])  # Docker refuses more than there are
        threads = compute._replace(cores=cores).thread_variable()
        own = DockerContainerContext(env_vars=[threads], container_kwargs={"nano_cpus": cores * 10**9})
        return super()._create_step_container(client, container_context.merge(own), step_image, step_handler_context)


def container_executor(modules: Sequence[str], variables: Sequence[str], overrides: Overrides) -> dg.ExecutorDefinition:
    """Return the executor that has the configuration of dagster-docker's, and forks cheap steps from `modules`.

    At most as many steps are at work at once as this machine has cores, unless `max_concurrent` says otherwise.
    """

    def create(context: dg.InitExecutorContext) -> dg.Executor:
        config: dict[str, Any] = {**context.executor_config}
        container = DockerContainerContext(
            registry=config.get("registry"),
            env_vars=config.get("env_vars"),
            networks=[config["network"]] if config.get("network") else config.get("networks"),
            container_kwargs=config.get("container_kwargs"),
        )
        return StepDelegatingExecutor(
            SharedOrOwn(ContainerSteps(config.get("image"), container, variables), modules, overrides),
            retries=RetryMode.from_config(config["retries"]) or RetryMode.ENABLED,
            max_concurrent=config.get("max_concurrent") or os.cpu_count(),  # Dagster's own default has no bound
            tag_concurrency_limits=config.get("tag_concurrency_limits"),
            check_step_health_interval_seconds=HEALTH_SECONDS,
        )

    schema: Any = docker_executor.config_schema
    return dg.ExecutorDefinition("docker", schema, dg.multiple_process_executor_requirements(), create)


def find_container(container_id: str) -> Container | None:
    """Return a container of this machine's Docker, None if there is none of this number.

    Raises DockerException if Docker cannot be asked.
    """
    with closing(docker.from_env(timeout=DOCKER_SECONDS)) as client:
        try:
            return client.containers.get(container_id)
        except docker.errors.NotFound:
            return None
