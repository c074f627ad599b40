"""Steps as jobs of Kubernetes, each in a pod with the cores, the memory and the GPUs that it declares.

The executor of dagster-k8s makes the jobs, and reads what a step declares from its tags.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg
from dagster._core.executor.step_delegating import (
    CheckStepHealthResult,
    StepDelegatingExecutor,
    StepHandler,
    StepHandlerContext,
)
from dagster_k8s import K8sRunLauncher, k8s_job_executor
from dagster_k8s.executor import K8sStepHandler

from mnist_pipeline.defs.engines.compute import Compute
from mnist_pipeline.defs.engines.several_hosts import require_shared
from mnist_pipeline.defs.engines.shared_or_own import Overrides, SharedOrOwn
from mnist_pipeline.environment import Environment

OUT_OF_MEMORY = "OOMKilled"
"""The reason that Kubernetes gives for such an end."""


class PodSteps(StepHandler):
    """Launches each step by the handler of dagster-k8s, and says of one that broke down why."""

    def __init__(self, native: K8sStepHandler) -> None:
        self._native = native

    @property
    def name(self) -> str:
        """The handler's name in the log."""
        return self._native.name

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Start the step."""
        return self._native.launch_step(step_handler_context)

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
        pods = self._native._api_client.core_api.list_namespaced_pod(namespace, label_selector=f"job-name={job}").items
        ended = [found.state.terminated for pod in pods for found in pod.status.container_statuses or []]
        if any(state and state.reason == OUT_OF_MEMORY for state in ended):
            [tags] = step_handler_context.step_tags.values()
            declared = Compute.of(tags)
            assert declared, "a step without a declaration gets no pod of its own"
            return CheckStepHealthResult.unhealthy(
                f"it took more than {declared.memory_mib} MiB of memory and was killed: declare more beside the asset, "
                "or under `compute` in EXECUTOR_CONFIG"
            )
        return CheckStepHealthResult.unhealthy(f"{health.unhealthy_reason} kubectl describe job {job} says more")


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
        handler = executor._step_handler
        assert isinstance(handler, K8sStepHandler)
        executor._step_handler = SharedOrOwn(PodSteps(handler), modules, overrides)
        return executor

    schema: Any = k8s_job_executor.config_schema
    return dg.ExecutorDefinition("k8s", schema, dg.multiple_process_executor_requirements(), create)
