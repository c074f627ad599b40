"""Steps as jobs of a Ray cluster, each on a host that has the cores, the memory and the GPUs that it declares.

The step handler of dagster-ray 0.4.8 submits the jobs. Found by running it, and seen to here: what the executor sets
beats what a step declares, custom resources of one step stay set for those after it, the entry point is found on PATH
only, any answer but 200 counts as a lost job, and a step of a run that was lost is not looked for.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import requests
from dagster._core.events import EngineEventData
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.step_delegating import CheckStepHealthResult, StepDelegatingExecutor, StepHandlerContext
from dagster_ray.core.executor import RayStepHandler, ray_executor
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from mnist_pipeline.defs.engines.compute import THREADS, Compute
from mnist_pipeline.defs.engines.several_hosts import is_here, require_shared
from mnist_pipeline.defs.engines.shared_or_own import Overrides, SharedOrOwn
from mnist_pipeline.defs.engines.traces import RAY_ADDRESS, RAY_JOB
from mnist_pipeline.environment import PLACES, Environment
from mnist_pipeline.variables import STORES_OF_BEFORE, absolute

MIB = 1 << 20

HEALTH_SECONDS = 5
"""Between two looks whether the jobs are at work."""

LOST_SECONDS = 120
"""A cluster that gives no answer for so long counts as gone: its processes end a minute after its head."""

LOG_CHARACTERS = 1000
"""The end of the log of a job that failed: so much of it is told."""

DECLARED = frozenset({"num_cpus", "num_gpus", "memory"})
"""The options that a step declares beside its asset: for all steps they would have no effect."""

LOCAL = {*PLACES, "dataset_dir", "mnist_dir", "model_dir", "pipeline_config"}
"""The variables, in small letters, that may hold the path of a file or folder."""

UNREACHABLE = (ConnectionError, RuntimeError, requests.RequestException, RayStateApiException)
"""The errors of a client whose cluster is gone, busy, or refuses to answer."""


class RaySteps(RayStepHandler):
    """Submits each step as a job of its own."""

    def __init__(self, common: RayStepHandler, variables: Sequence[str]) -> None:
        """`common` has what all steps share; `variables` are the names that jobs get from this process, if set."""
        super().__init__(common.client, common.env_vars, common.runtime_env, None, None, None, common.resources)
        self._variables = variables
        self._silent_since: float | None = None

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Submit the step, after those jobs of it were stopped whose run has ended."""
        context, step = step_handler_context, self._get_step_key(step_handler_context)
        [tags] = context.step_tags.values()
        compute = Compute.of(tags)
        assert compute, "a step without a declaration is no job of its own"
        self._stop_strays(context, step)
        address = self.client.get_address()
        context.instance.report_engine_event(
            f"{step} asks the Ray cluster {address} for {compute.words}{_shortage(address, compute)}",
            context.dagster_run,
            EngineEventData(
                {
                    RAY_ADDRESS: dg.MetadataValue.text(address),
                    RAY_JOB: dg.MetadataValue.text(self._get_ray_job_submission_id(context)),
                }
            ),
            step_key=step,
        )
        programs = f"PATH={Path(sys.executable).parent}:${{PATH}}"  # Ray puts in the host's own
        threads = THREADS if THREADS in os.environ else f"{THREADS}={compute.cores}"
        passed = [f"{name}={_found_from_anywhere(name)}" for name in self._variables if os.environ.get(name)]
        yield from RayStepHandler(
            client=self.client,
            env_vars=[programs, threads, *passed, *self.env_vars],
            runtime_env=self.runtime_env,
            # What an executor sets stands above a step's tag of dagster-ray, which may name custom resources besides.
            num_cpus=compute.cores,
            num_gpus=compute.gpus,
            memory=compute.memory_mib * MIB,
            resources=dict(self.resources or {}),  # it adds the step's own to what it is given
        ).launch_step(context)

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        """Tell whether the step is at work, or was done; of one that broke down, why."""
        job = self._get_ray_job_submission_id(step_handler_context)
        try:
            found = find_job(self.client, job)
        except UNREACHABLE as error:
            self._silent_since = self._silent_since or time.monotonic()
            if (silent := time.monotonic() - self._silent_since) < LOST_SECONDS:
                return CheckStepHealthResult.healthy()
            return CheckStepHealthResult.unhealthy(
                f"the Ray cluster {self.client.get_address()} has not answered for {silent:.0f} s, and ends what it "
                f"was at when its head is gone: {error}"
            )
        self._silent_since = None
        if found is None:
            return CheckStepHealthResult.unhealthy(f"the Ray cluster does not know the job {job} any more")
        if found.status == JobStatus.FAILED:
            why = (found.message or "").strip()[-LOG_CHARACTERS:]
            return CheckStepHealthResult.unhealthy(f"the Ray job {job} failed ({found.error_type}): {why}")
        return CheckStepHealthResult.healthy()

    def _stop_strays(self, context: StepHandlerContext, step: str) -> None:
        for job in self.client.list_jobs():
            labels = job.metadata or {}
            if labels.get("dagster/op") != step or job.status.is_terminal() or not job.submission_id:
                continue
            run = context.instance.get_run_by_id(labels.get("dagster/run-id", ""))
            if run and run.is_finished:  # none: of another deployment that shares this cluster
                context.instance.report_engine_event(
                    f"{step} was still at work in Ray job {job.submission_id} for a run that had ended: it is ended",
                    context.dagster_run,
                )
                self.client.stop_job(job.submission_id)


def _found_from_anywhere(name: str) -> str:
    """The value of a variable; a relative path in it begins at the folder of this process, not at that of the host."""
    value = os.environ[name]
    is_path = name.lower() in LOCAL and "://" not in value and value not in STORES_OF_BEFORE
    return absolute(value) if is_path else value


def _shortage(address: str, compute: Compute) -> str:
    """Return words if no host of the cluster has as much as a step declares; a cluster may grow."""
    wanted = {"CPU": compute.cores, "memory": compute.memory_mib * MIB, "GPU": compute.gpus}
    hosts = [node.resources_total for node in alive(address)]
    if any(all(host.get(name, 0) >= amount for name, amount in wanted.items()) for host in hosts):
        return ""
    largest = "; ".join(
        f"{host.get('CPU', 0):.0f} cores, {host.get('memory', 0) / MIB:.0f} MiB, {host.get('GPU', 0):.0f} GPUs"
        for host in hosts
    )
    return (
        f". No host has that much ({largest}), so it waits for one that has: where none will come, say less under "
        "`compute` in EXECUTOR_CONFIG"
    )


def alive(address: str) -> list[Any]:
    """Return the hosts of the cluster."""
    return list_nodes(address, filters=[("state", "=", "ALIVE")], detail=True, raise_on_missing_output=False)


def find_job(client: JobSubmissionClient, job: str) -> JobDetails | None:
    """Return a job with its state, None if the cluster does not know it.

    Raises one of UNREACHABLE if the cluster cannot be asked.
    """
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if "status code 404" in str(error):
            return None
        raise


def cluster_executor(
    environment: Environment, modules: Sequence[str], variables: Sequence[str], overrides: Overrides
) -> dg.ExecutorDefinition:
    """Return the executor that has the configuration of dagster-ray's, and forks cheap steps from `modules`."""

    def create(context: dg.InitExecutorContext) -> dg.Executor:
        native = ray_executor.executor_creation_fn
        assert native, "dagster-ray's executor can be created"
        common = native(context)._step_handler  # type: ignore[attr-defined]  # it reads the configuration
        hosts = [node.node_ip for node in alive(common.client.get_address())]
        if not all(is_here(host) for host in hosts):
            require_shared(environment, context.instance, f"the Ray cluster has the hosts {', '.join(hosts)}")
        return StepDelegatingExecutor(
            SharedOrOwn(RaySteps(common, variables), modules, overrides),
            retries=RetryMode.from_config(context.executor_config["retries"]) or RetryMode.ENABLED,  # type: ignore[arg-type]
            tag_concurrency_limits=context.executor_config.get("tag_concurrency_limits"),  # type: ignore[arg-type]
            check_step_health_interval_seconds=HEALTH_SECONDS,
        )

    schema: Any = ray_executor.config_schema
    return dg.ExecutorDefinition("ray", schema, dg.multiple_process_executor_requirements(), create)
