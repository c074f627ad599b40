"""The run history of an experiment: a DAGSTER_HOME of its own, which begins with what is known of each asset."""

from pathlib import Path

import dagster as dg
import yaml

from mnist_pipeline.environment import PROJECT

STORAGE = (
    *("storage", "run_storage", "event_log_storage", "schedule_storage"),
    *("local_artifact_storage", "compute_logs"),
)
"""The settings of an instance that say where its history lies."""


def begin_history(deployment: dg.DagsterInstance, home: Path) -> int:
    """Make a DAGSTER_HOME with the settings of one machine, and its history in this folder.

    It knows the last materialization of each asset that has no partitions, with its data version, so that nothing that
    was copied counts as missing or stale. Returns how many these are.
    """
    home.mkdir()
    settings = yaml.safe_load((PROJECT / "dagster.yaml").read_text())
    kept = {name: value for name, value in settings.items() if name not in STORAGE}
    (home / "dagster.yaml").write_text(yaml.safe_dump(kept, sort_keys=False))
    known = 0
    with dg.DagsterInstance.from_config(str(home)) as instance:
        for key in deployment.get_asset_keys():
            event = deployment.get_latest_materialization_event(key)
            materialization = event.asset_materialization if event else None
            if materialization and materialization.partition is None:
                instance.report_runless_asset_event(materialization)
                known += 1
    return known
