"""Steps as jobs of a Ray cluster, each on a host that has the cores, the memory and the GPUs that it declares.

The step handler of dagster-ray 0.4.8 submits the jobs. Found by running it, and seen to here: what the executor sets
beats what a step declares, custom resources of one step stay set for those after it, the entry point is found on PATH
only, any answer but 200 counts as a lost job, a silent cluster is waited for without end, one that is away when a step
begins ends the run, and a step of a run that was lost is not looked for.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import requests
from dagster._core.events import EngineEventData
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.step_delegating import CheckStepHealthResult, StepDelegatingExecutor, StepHandlerContext
from dagster_ray.core.executor import RayExecutorConfig, RayStepHandler, ray_executor
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from mnist_pipeline.defs.engines.compute import THREADS, Compute
from mnist_pipeline.defs.engines.several_hosts import is_here, require_shared
from mnist_pipeline.defs.engines.shared_or_own import Overrides, SharedOrOwn
from mnist_pipeline.defs.engines.traces import RAY_ADDRESS, RAY_JOB, read_traces
from mnist_pipeline.environment import PLACES, Environment
from mnist_pipeline.variables import STORES_OF_BEFORE, absolute

MIB = 1 << 20

ANSWER_SECONDS = 15
"""Longer than a cluster at work needs for an answer; run monitoring waits for it."""

HEALTH_SECONDS = 5
"""Between two looks whether the jobs are at work."""

LOST_SECONDS = 120
"""A cluster that gives no answer for so long counts as gone: its processes end a minute after its head."""

LOG_CHARACTERS = 1000
"""The end of the log of a job that failed: so much of it is told."""

LISTED_KINDS = 5
"""The kinds of hosts of which there are most: so many are told."""

DECLARED = frozenset({"num_cpus", "num_gpus", "memory"})
"""The options that a step declares beside its asset: for all steps they would have no effect."""

LOCAL = {*PLACES, "dataset_dir", "mnist_dir", "model_dir", "pipeline_config"}
"""The variables, in small letters, that may hold the path of a file or folder."""

UNREACHABLE = (ConnectionError, RuntimeError, requests.RequestException, RayStateApiException, AuthenticationError)
"""The errors of a client whose cluster is gone, busy, or refuses to answer."""


class Client(JobSubmissionClient):
    """Ray's client, which waits for an answer so long and no longer."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        return super()._do_request(method, endpoint, **{"timeout": ANSWER_SECONDS} | options)


class RaySteps(RayStepHandler):
    """Submits each step as a job of its own."""

    def __init__(self, common: RayStepHandler, variables: Sequence[str]) -> None:
        """`common` has what all steps share; `variables` are the names that jobs get from this process, if set."""
        super().__init__(common.client, common.env_vars, common.runtime_env, None, None, None, common.resources)
        self._variables = variables
        self._silent_since: float | None = None

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Submit the step, after the job of it was stopped that outlived the run before.

        A cluster that cannot be reached is no end of the run: the next look finds that there is no such job.
        """
        try:
            yield from self._submit(step_handler_context, self._get_step_key(step_handler_context))
        except UNREACHABLE as error:
            step_handler_context.instance.report_engine_event(
                f"{self._get_step_key(step_handler_context)} could not be submitted, and is tried again: {error}",
                step_handler_context.dagster_run,
            )

    def _submit(self, context: StepHandlerContext, step: str) -> Iterator[dg.DagsterEvent]:
        [tags] = context.step_tags.values()
        compute = Compute.of(tags)
        assert compute, "a step without a declaration is no job of its own"
        self._stop_stray(context, step)
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
        if found.status in (JobStatus.FAILED, JobStatus.STOPPED):  # stopped: by somebody, on the dashboard
            why = (found.message or "").strip()[-LOG_CHARACTERS:]
            return CheckStepHealthResult.unhealthy(f"the Ray job {job}: {found.status} ({found.error_type}): {why}")
        return CheckStepHealthResult.healthy()

    def _stop_stray(self, context: StepHandlerContext, step: str) -> None:
        """Stop the job of the step in the run that this one is a retry of, if it outlived that."""
        parent = context.dagster_run.parent_run_id
        before = context.instance.get_run_by_id(parent) if parent else None
        place = read_traces(context.instance, before).elsewhere.get(step) if before else None
        job = find_job(self.client, place.name) if place and place.cluster else None
        if place and job and not job.status.is_terminal():
            context.instance.report_engine_event(
                f"{step} was still at work in Ray job {place.name} for a run that had ended: it is ended",
                context.dagster_run,
            )
            self.client.stop_job(place.name)


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
    kinds = Counter(
        f"{host.get('CPU', 0):.0f} cores, {host.get('memory', 0) / MIB:.0f} MiB, {host.get('GPU', 0):.0f} GPUs"
        for host in hosts
    )
    found = "; ".join(f"{count} with {what}" for what, count in kinds.most_common(LISTED_KINDS))
    return (
        f". No host has that much ({found}), so it waits for one that has: where none will come, say less under "
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
        given: Any = context.executor_config["ray"]
        config = RayExecutorConfig(**given)
        client = Client(config.address, metadata=config.metadata, headers=config.headers, cookies=config.cookies)
        common = RayStepHandler(client, config.env_vars, config.runtime_env, None, None, None, config.resources)
        hosts = [node.node_ip for node in alive(client.get_address())]
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
