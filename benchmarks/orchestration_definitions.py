"""The same code location under the executor that BENCHMARK_EXECUTOR names."""

import os
from collections.abc import Callable

import dagster as dg

from mnist_pipeline.definitions import build_definitions
from mnist_pipeline.defs.engines.choosing import executor
from mnist_pipeline.defs.jobs import build_jobs
from mnist_pipeline.defs.preloaded import DAGSTER, MACHINE_LEARNING
from mnist_pipeline.environment import Environment

ALL = [*DAGSTER, *MACHINE_LEARNING]
EXECUTORS: dict[str, Callable[[Environment], dg.ExecutorDefinition]] = {
    "in_process": lambda environment: executor(environment.model_copy(update={"executor": "in_process"}), ALL),
    "spawn": lambda _: dg.multiprocess_executor,
    "light": lambda environment: executor(environment, DAGSTER),
    "preloaded": lambda environment: executor(environment, ALL),
    "docker": lambda environment: executor(environment.model_copy(update={"executor": "docker"}), ALL),
}


def _definitions(name: str) -> dg.Definitions:
    environment = Environment.read(os.environ)
    usual = build_definitions(environment)
    return dg.Definitions(
        assets=usual.assets,
        asset_checks=usual.asset_checks,
        jobs=build_jobs(EXECUTORS[name](environment)),
        resources=usual.resources,
    )


defs = _definitions(os.environ["BENCHMARK_EXECUTOR"])
