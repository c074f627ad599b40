"""Executors that write down where the process of a run is."""

import os
from collections.abc import Iterator
from typing import Any

import dagster as dg
from dagster._core.events import EngineEventData  # Dagster has no public names for these
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode
from dagster._core.execution.step_dependency_config import StepDependencyConfig

from mnist_pipeline.defs.engines.host import Host

PID, HOST = "pid", "host"
"""The names in the metadata of the event; Dagster's own events have the first."""


class _Marking(dg.Executor):
    def __init__(self, executor: dg.Executor) -> None:
        self._executor = executor

    @property
    def retries(self) -> RetryMode:
        return self._executor.retries

    @property
    def step_dependency_config(self) -> StepDependencyConfig:
        return self._executor.step_dependency_config

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[dg.DagsterEvent]:
        host, pid = Host.here(), os.getpid()
        plan_context.instance.report_engine_event(
            f"Run by process {pid} on {host.name}",
            plan_context.dagster_run,
            EngineEventData({PID: dg.MetadataValue.text(str(pid)), HOST: dg.MetadataValue.json(host._asdict())}),
        )
        yield from self._executor.execute(plan_context, execution_plan)


def marking(definition: dg.ExecutorDefinition) -> dg.ExecutorDefinition:
    """Return the executor so that each run says in its first event where its process is, which health checks need."""
    create = definition.executor_creation_fn
    assert create, "an executor can be created"
    schema: Any = definition.config_schema
    return dg.ExecutorDefinition(
        definition.name,
        schema,
        definition.get_requirements,
        lambda context: _Marking(create(context)),
        definition.description,
    )
