"""Steps as jobs of a Ray cluster, each on a host that has the cores, the memory and the GPUs that it declares.

The step handler of dagster-ray 0.4.8 submits the jobs. Found by running it, and seen to here: what the executor sets
beats what a step declares, custom resources of one step stay set for those after it, the entry point is found on PATH
only, any answer but 200 counts as a lost job, a silent cluster is waited for without end, one that is away when a step
begins ends the run, and a step of a run that was lost is not looked for.
"""

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.events import EngineEventData
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.step_delegating import CheckStepHealthResult, StepDelegatingExecutor, StepHandlerContext
from dagster_ray.core.executor import RayExecutorConfig, RayStepHandler, ray_executor
from ray.job_submission import JobStatus

from mnist_pipeline.defs.engines.compute import Compute
from mnist_pipeline.defs.engines.ray_client import UNREACHABLE, Client, connect
from mnist_pipeline.defs.engines.several_hosts import is_here, require_shared
from mnist_pipeline.defs.engines.shared_or_own import Overrides, SharedOrOwn, declared, declares
from mnist_pipeline.defs.engines.traces import RAY_ADDRESS, RAY_JOB, left_behind
from mnist_pipeline.environment import PLACES, Environment
from mnist_pipeline.variables import STORES_OF_BEFORE, absolute

MIB = 1 << 20

HEALTH_SECONDS = 5
"""Between two looks whether the jobs are at work."""

LOST_SECONDS = 120
"""A cluster that gives no answer for so long counts as gone: its processes end a minute after its head."""

STOP_SECONDS = 15
"""Longer than Ray needs to end a job that was told to stop."""

LOG_CHARACTERS = 1000
"""The end of the log of a job that failed: so much of it is told."""

OF_THE_PROCESS = ("DAGSTER_HOME", "PYTHONWARNINGS")
"""Variables beside the project's: an experiment has a home of its own; no announcements of betas in the logs."""

OF_RUNS_ONLY = ("EXECUTOR=multiprocess", "EXECUTOR_CONFIG=")
"""The variables that a job needs none of, and may find in the environment of its host."""

LISTED_KINDS = 5
"""The kinds of hosts of which there are most: so many are told."""

DECLARED = frozenset({"num_cpus", "num_gpus", "memory"})
"""The options that a step declares beside its asset: for all steps they would have no effect."""

LOCAL = {*PLACES, "pipeline_config"}
"""The variables, in small letters, that may hold the path of a file or folder, beside those that end with `_dir`."""


class RaySteps(RayStepHandler):
    """Submits each step as a job of its own."""

    client: Client

    def __init__(self, client: Client, config: RayExecutorConfig, variables: Sequence[str]) -> None:
        """`config` is what all steps share; `variables` are the names that jobs get from this process, if set."""
        super().__init__(client, config.env_vars, config.runtime_env, None, None, None, config.resources)
        self._variables = variables
        self._silent_since: float | None = None
        self._asked_in_vain = -math.inf

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Submit the step, after the job of it was stopped that outlived the run or the attempt before.

        A cluster that cannot be reached is no end of the run: the next look finds that there is no such job.
        """
        self._silent_since, self._asked_in_vain = None, -math.inf  # each attempt has its own time
        try:
            yield from self._submit(step_handler_context, self._get_step_key(step_handler_context))
        except UNREACHABLE as error:
            step_handler_context.instance.report_engine_event(
                f"could not be submitted, and is tried again: {error}",
                step_handler_context.dagster_run,
                step_key=self._get_step_key(step_handler_context),
            )

    def _submit(self, context: StepHandlerContext, step: str) -> Iterator[dg.DagsterEvent]:
        compute = declared(context)
        for name in self._jobs_before(context, step):
            self._stop_job(context, step, name)
        address, job = self.client.get_address(), self._get_ray_job_submission_id(context)
        where = {RAY_ADDRESS: dg.MetadataValue.text(address), RAY_JOB: dg.MetadataValue.text(job)}
        shortage = _shortage(self.client.hosts(), compute)
        asked = f"asks {address} for {compute.words}, as the job {job}{shortage}"
        context.instance.report_engine_event(asked, context.dagster_run, EngineEventData(where), step_key=step)
        programs = f"PATH={Path(sys.executable).parent}:${{PATH}}"  # Ray puts in the host's own
        passed = [f"{name}={_found_from_anywhere(name)}" for name in (*self._variables, *OF_THE_PROCESS)]
        yield from RayStepHandler(
            client=self.client,
            env_vars=[programs, compute.thread_variable(), *OF_RUNS_ONLY, *passed, *self.env_vars],
            runtime_env=self.runtime_env,
            # These stand above a step's tag of dagster-ray, which may name custom resources besides.
            num_cpus=compute.cores,
            num_gpus=compute.gpus,
            memory=compute.memory_mib * MIB,
            resources=dict(self.resources or {}),  # it adds the step's own to what it is given
        ).launch_step(context)

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        """Tell whether the step is at work, or was done; of one that broke down, why."""
        job, now = self._get_ray_job_submission_id(step_handler_context), time.monotonic()
        if now - self._asked_in_vain < HEALTH_SECONDS:  # for another step: each question may take long
            return CheckStepHealthResult.healthy()
        try:
            found = self.client.find_job(job)
        except UNREACHABLE as error:
            self._asked_in_vain = time.monotonic()
            self._silent_since = self._silent_since or now
            if (silent := self._asked_in_vain - self._silent_since) < LOST_SECONDS:
                return CheckStepHealthResult.healthy()
            return CheckStepHealthResult.unhealthy(
                f"the Ray cluster {self.client.get_address()} has not answered for {silent:.0f} s: {error}"
            )
        self._silent_since = None
        if found is None:
            return CheckStepHealthResult.unhealthy(f"the Ray cluster does not know the job {job} any more")
        if found.status in (JobStatus.FAILED, JobStatus.STOPPED):  # stopped: by somebody, on the dashboard
            log = (found.message or "").strip()
            last = log.splitlines()[-1][:LOG_CHARACTERS] if log else "no word why"
            return CheckStepHealthResult.unhealthy(
                f"the Ray job {job}: {found.status} ({found.error_type}): {last}\n{log[-LOG_CHARACTERS:]}"
            )
        return CheckStepHealthResult.healthy()

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Stop the step; a cluster that cannot be reached does not keep others from being stopped."""
        try:
            yield from super().terminate_step(step_handler_context)
        except UNREACHABLE as error:
            step_handler_context.instance.report_engine_event(
                f"could not be stopped: {error}",
                step_handler_context.dagster_run,
                step_key=self._get_step_key(step_handler_context),
            )

    def _stop_job(self, context: StepHandlerContext, step: str, name: str) -> None:
        """Stop a job that is still at work on the step, and wait for its end: both would write the same checkpoints."""
        job = self.client.find_job(name)
        if not job or job.status.is_terminal():
            return
        context.instance.report_engine_event(
            f"was still at work in Ray job {name}, which counted as lost: it is stopped",
            context.dagster_run,
            step_key=step,
        )
        self.client.stop_job(name)
        deadline = time.monotonic() + STOP_SECONDS
        while job and not job.status.is_terminal() and time.monotonic() < deadline:
            time.sleep(1)
            job = self.client.find_job(name)

    def _jobs_before(self, context: StepHandlerContext, step: str) -> list[str]:
        """The jobs of the attempts before, and those of the runs that this one is a retry of."""
        known = context.execute_step_args.known_state
        attempts = known.get_retry_state().get_attempt_count(step) if known else 0
        first = self._get_ray_job_submission_id(context).removesuffix(f"-{attempts}")
        names = [f"{first}-{attempt}" if attempt else first for attempt in range(attempts)]
        places = left_behind(context.instance, context.dagster_run, step)
        return [*names, *(place.name for place in places if place.kind == RAY_JOB)]


def _found_from_anywhere(name: str) -> str:
    """The value of a variable, empty where it has none here: the host may have another one.

    A relative path in it begins at the folder of this process, not at that of the host.
    """
    value = os.environ.get(name, "")
    may_be_path = name.lower() in LOCAL or name.endswith("_DIR")
    return absolute(value) if value and may_be_path and "://" not in value and value not in STORES_OF_BEFORE else value


def _shortage(nodes: list[dict[str, Any]], compute: Compute) -> str:
    """Return words if no host of the cluster has as much as a step declares; a cluster may grow."""
    wanted = {"CPU": compute.cores, "memory": compute.memory_mib * MIB, "GPU": compute.gpus}
    hosts = [node["resources_total"] for node in nodes]
    if any(all(host.get(name, 0) >= amount for name, amount in wanted.items()) for host in hosts):
        return ""
    kinds = Counter(
        f"{host.get('CPU', 0):.0f} cores, {host.get('memory', 0) / MIB:.0f} MiB, {host.get('GPU', 0):.0f} GPUs"
        for host in hosts
    )
    found = "; ".join(f"{count} with {what}" for what, count in kinds.most_common(LISTED_KINDS))
    return (
        f". No host has that much ({found}), so it waits for one that has: where none will come, declare less under "
        "`compute` in EXECUTOR_CONFIG"
    )


def cluster_executor(
    environment: Environment,
    modules: Sequence[str],
    variables: Sequence[str],
    overrides: Overrides,
    max_concurrent: int | None,
) -> dg.ExecutorDefinition:
    """Return the executor that has the configuration of dagster-ray's, and forks cheap steps from `modules`.

    At most `max_concurrent` steps of a run are at work at once, None: no bound.
    """

    def create(context: dg.InitExecutorContext) -> dg.Executor:
        given: Any = context.executor_config["ray"]
        config, own = RayExecutorConfig(**given), None
        if declares(context):  # a run of cheap steps needs no cluster
            client, hosts = connect(config, environment.executor_config)
            if not all(is_here(host) for host in hosts):
                require_shared(environment, context.instance, f"the Ray cluster has the hosts {', '.join(hosts)}")
            own = RaySteps(client, config, variables)
        return StepDelegatingExecutor(
            SharedOrOwn(own, modules, overrides),
            max_concurrent=max_concurrent,
            retries=RetryMode.from_config(context.executor_config["retries"]) or RetryMode.ENABLED,  # type: ignore[arg-type]
            tag_concurrency_limits=context.executor_config.get("tag_concurrency_limits"),  # type: ignore[arg-type]
            check_step_health_interval_seconds=HEALTH_SECONDS,
        )

    schema: Any = ray_executor.config_schema
    return dg.ExecutorDefinition("ray", schema, dg.multiple_process_executor_requirements(), create)
