"""The same code location under the executor that BENCHMARK_EXECUTOR names."""

import os
from collections.abc import Sequence

import dagster as dg

from mnist_pipeline.definitions import build_definitions, load_assets
from mnist_pipeline.defs.engines.choosing import declaring_steps, executor
from mnist_pipeline.defs.jobs import build_jobs
from mnist_pipeline.defs.preloaded import DAGSTER, MACHINE_LEARNING
from mnist_pipeline.environment import Environment

ALL = [*DAGSTER, *MACHINE_LEARNING]
PRELOADED: dict[str, Sequence[str]] = {"light": DAGSTER}


def _executor(name: str, environment: Environment, assets: Sequence[dg.AssetsDefinition]) -> dg.ExecutorDefinition:
    """The executor that is measured: but for Dagster's own, that of EXECUTOR."""
    if name == "spawn":
        return dg.multiprocess_executor
    return executor(environment, PRELOADED.get(name, ALL), declaring_steps(assets))


def _definitions(name: str) -> dg.Definitions:
    environment = Environment.read(os.environ)
    usual = build_definitions(environment)
    assets, _ = load_assets(environment)
    return dg.Definitions(
        assets=usual.assets,
        asset_checks=usual.asset_checks,
        jobs=build_jobs(_executor(name, environment, assets)),
        resources=usual.resources,
    )


defs = _definitions(os.environ["BENCHMARK_EXECUTOR"])
