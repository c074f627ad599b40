"""Steps as jobs of Kubernetes, each in a pod with the cores, the memory and the GPUs that it declares.

The executor of dagster-k8s makes the jobs, and reads what a step declares from its tags. Found by running it, and seen
to here: a run that goes on in another pod ends where a job of its step is there already, and the job of a run that
ended is not looked for.
"""

import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any

import dagster as dg
from dagster._core.executor.step_delegating import (
    CheckStepHealthResult,
    StepDelegatingExecutor,
    StepHandler,
    StepHandlerContext,
)
from dagster_k8s import K8sRunLauncher, k8s_job_executor
from dagster_k8s.client import DagsterK8sUnrecoverableAPIError
from dagster_k8s.executor import K8sStepHandler
from kubernetes.client.exceptions import ApiException

from mnist_pipeline.defs.engines.several_hosts import require_shared
from mnist_pipeline.defs.engines.shared_or_own import Overrides, SharedOrOwn, declared
from mnist_pipeline.defs.engines.traces import KUBERNETES_JOB, left_behind
from mnist_pipeline.environment import Environment

STOP_SECONDS = 40
"""Longer than Kubernetes gives a pod to end."""

OUT_OF_MEMORY = "OOMKilled"
"""The reason that Kubernetes gives for such an end."""


class PodSteps(StepHandler):
    """Launches each step by the handler of dagster-k8s, once, and says of one that broke down why."""

    def __init__(self, native: K8sStepHandler) -> None:
        self._native = native
        self._client = native._api_client

    @property
    def name(self) -> str:
        """The handler's name in the log."""
        return self._native.name

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Start the step, after the job of it was deleted that outlived the run before."""
        instance, run = step_handler_context.instance, step_handler_context.dagster_run
        step = self._native._get_step_key(step_handler_context)
        for place in left_behind(instance, run, step):
            if place.kind == KUBERNETES_JOB:
                self._delete_job(step_handler_context, step, place.name)
        try:
            yield from self._native.launch_step(step_handler_context)
        except DagsterK8sUnrecoverableAPIError as error:
            if error.k8s_api_exception.status != HTTPStatus.CONFLICT:
                raise
            # The run was lost together with the step, and goes on: a look at the job says what became of it.
            job = self._native._get_k8s_step_job_name(step_handler_context)
            instance.report_engine_event(f"was begun already, as the job {job}", run, step_key=step)

    def _delete_job(self, context: StepHandlerContext, step: str, job: str) -> None:
        """Delete a job that is still at work on the step, and wait for the end of its pods: both would write."""
        namespace = self._native._get_container_context(context).namespace
        status = self._client.get_job_status(namespace=namespace, job_name=job)
        if not status or not status.active:  # the logs of others may tell something
            return
        self._client.delete_job(job_name=job, namespace=namespace)
        context.instance.report_engine_event(
            f"the job {job}, for a run that had ended, is deleted", context.dagster_run, step_key=step
        )
        deadline = time.monotonic() + STOP_SECONDS
        while self._client.get_pod_names_in_job(job, namespace) and time.monotonic() < deadline:
            time.sleep(1)

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """End the step."""
        return self._native.terminate_step(step_handler_context)

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        """Tell whether the step is at work, or was done; of one that took more memory than it declares, that."""
        health = self._native.check_step_health(step_handler_context)
        if health.is_healthy:
            return health
        job = self._native._get_k8s_step_job_name(step_handler_context)
        namespace = self._native._get_container_context(step_handler_context).namespace
        why = f"{health.unhealthy_reason} kubectl describe job {job} says more"
        try:
            pods = self._client.core_api.list_namespaced_pod(namespace, label_selector=f"job-name={job}").items
        except ApiException as error:
            return CheckStepHealthResult.unhealthy(f"{why}; its pods cannot be looked at: {error.reason}")
        ended = [found.state.terminated for pod in pods for found in pod.status.container_statuses or []]
        if any(state and state.reason == OUT_OF_MEMORY for state in ended):
            why = declared(step_handler_context).outgrown
        return CheckStepHealthResult.unhealthy(why)


def pod_executor(environment: Environment, modules: Sequence[str], overrides: Overrides) -> dg.ExecutorDefinition:
    """Return the executor that has the configuration of dagster-k8s's, and forks cheap steps from `modules`."""

    def create(context: dg.InitExecutorContext) -> dg.Executor:
        if not isinstance(context.instance.run_launcher, K8sRunLauncher):
            raise dg.DagsterInvariantViolationError(
                "EXECUTOR=k8s takes runs that are pods themselves: dagster.yaml must name K8sRunLauncher of "
                "dagster_k8s as its run_launcher, as Dagster's chart does (deploy/kubernetes/README.md). On this "
                "machine use another EXECUTOR"
            )
        require_shared(environment, context.instance, "each pod has a disk of its own")
        native = k8s_job_executor.executor_creation_fn
        assert native, "dagster-k8s's executor can be created"
        executor = native(context)
        assert isinstance(executor, StepDelegatingExecutor)
        handler = executor._step_handler  # there is no public way to its configuration
        assert isinstance(handler, K8sStepHandler)
        executor._step_handler = SharedOrOwn(PodSteps(handler), modules, overrides)
        return executor

    schema: Any = k8s_job_executor.config_schema
    return dg.ExecutorDefinition("k8s", schema, dg.multiple_process_executor_requirements(), create)
