"""The same code location under the executor that BENCHMARK_EXECUTOR names."""

import os

import dagster as dg

from mnist_pipeline.definitions import build_definitions
from mnist_pipeline.defs.jobs import LIGHT_FORKSERVER, PRELOADED_FORKSERVER
from mnist_pipeline.environment import Environment

EXECUTORS = {
    "in_process": dg.in_process_executor,
    "spawn": dg.multiprocess_executor,
    "light": LIGHT_FORKSERVER,
    "preloaded": PRELOADED_FORKSERVER,
}


def _definitions(executor: str) -> dg.Definitions:
    usual = build_definitions(Environment.read(os.environ))
    return dg.Definitions(
        assets=usual.assets,
        asset_checks=usual.asset_checks,
        jobs=[dg.define_asset_job("everything", dg.AssetSelection.all())],
        executor=EXECUTORS[executor],
        resources=usual.resources,
    )


defs = _definitions(os.environ["BENCHMARK_EXECUTOR"])
