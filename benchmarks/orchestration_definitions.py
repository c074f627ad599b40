"""The same code location under each executor."""

import os

import dagster as dg

from mnist_pipeline.automation import ALL_STEPS, STEPS_ONE_BY_ONE
from mnist_pipeline.definitions import build_definitions
from mnist_pipeline.environment import Environment


def _with(executor: dg.ExecutorDefinition) -> dg.Definitions:
    usual = build_definitions(Environment.read(os.environ))
    return dg.Definitions(
        assets=usual.assets,
        asset_checks=usual.asset_checks,
        jobs=[dg.define_asset_job("everything", dg.AssetSelection.all())],
        executor=executor,
        resources=usual.resources,
    )


in_process = _with(dg.in_process_executor)
spawn = _with(dg.multiprocess_executor)
one_by_one = _with(STEPS_ONE_BY_ONE)
all_steps = _with(ALL_STEPS)
