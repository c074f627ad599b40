"""Steps as jobs of Kubernetes, each in a pod with the cores, the memory and the GPUs that it declares.

The executor of dagster-k8s makes the jobs, and reads what a step declares from its tags.
"""

from collections.abc import Sequence
from typing import Any

import dagster as dg
from dagster._core.executor.step_delegating import StepDelegatingExecutor
from dagster_k8s import K8sRunLauncher, k8s_job_executor

from mnist_pipeline.defs.engines.several_hosts import require_shared
from mnist_pipeline.defs.engines.shared_or_own import Overrides, SharedOrOwn
from mnist_pipeline.environment import Environment


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
        executor._step_handler = SharedOrOwn(executor._step_handler, modules, overrides)
        return executor

    schema: Any = k8s_job_executor.config_schema
    return dg.ExecutorDefinition("k8s", schema, dg.multiple_process_executor_requirements(), create)
