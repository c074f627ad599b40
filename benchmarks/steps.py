"""One asset of this project, as its step does it, on data in a folder."""

import importlib
import time
from pathlib import Path

CONFIG = {"digit_classifier": {"epochs": 1}, "production_digit_classifier": {"accuracy_threshold": 0.1}}
"""One epoch of training, and what it gives is deployed."""


def environment(home: Path, data: Path | None) -> dict[str, str]:
    """Everything below `home`, which must exist; the data set is the IDX files in `data`, or the sample."""
    source = {"DATASET_SOURCE": "directory", "DATASET_DIR": str(data)} if data else {"DATASET_SOURCE": "sample"}
    return {"DAGSTER_HOME": str(home), "STORAGE_ROOT": str(home / "storage"), **source}


def materialize(asset: str, variables: dict[str, str], preloaded: bool = False) -> float:
    """Seconds of one asset with its checks, those it depends on materialized before.

    `preloaded`: with the modules imported ahead, as in the runs of `full_pipeline_job`; their seconds do not count.
    """
    import dagster as dg

    from mnist_pipeline.definitions import build_definitions
    from mnist_pipeline.defs.preloaded import DAGSTER, MACHINE_LEARNING
    from mnist_pipeline.environment import Environment

    for module in (*DAGSTER, *MACHINE_LEARNING) if preloaded else ():
        importlib.import_module(module)
    job = build_definitions(Environment.read(variables)).resolve_job_def("full_pipeline_job")
    with dg.DagsterInstance.from_config(variables["DAGSTER_HOME"]) as instance:
        began = time.perf_counter()
        job.execute_in_process(
            run_config={"ops": {asset: {"config": CONFIG[asset]}} if asset in CONFIG else {}},
            asset_selection=[dg.AssetKey(asset)],
            instance=instance,
        )
        return time.perf_counter() - began
