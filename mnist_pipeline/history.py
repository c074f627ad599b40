"""The run history: the beginning of that of an experiment, which knows the last event of each asset, and pruning."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import yaml

from mnist_pipeline.environment import PROJECT

Known = dict[dg.AssetKey, dg.AssetMaterialization | dg.AssetObservation]

STORAGE = (
    *("storage", "run_storage", "event_log_storage", "schedule_storage"),
    *("local_artifact_storage", "compute_logs"),
)
"""The settings of an instance that say where its history lies."""

FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def latest_events(instance: dg.DagsterInstance) -> Known:
    """Return the last materialization of each asset without partitions, and the last observation of each source."""
    found: Known = {}
    for key in instance.get_asset_keys():
        if event := instance.get_latest_materialization_event(key):
            if (latest := event.asset_materialization) and latest.partition is None:
                found[key] = latest
        elif records := instance.fetch_observations(key, limit=1).records:
            observed = records[0].event_log_entry.asset_observation
            found |= {key: observed} if observed else {}
    return found


def begin_history(home: Path, known: Known) -> None:
    """Make a DAGSTER_HOME with the settings of one machine, and its history in this folder.

    It begins with the events of the deployment, and their data versions: nothing that was copied counts as missing.
    """
    home.mkdir()
    settings = yaml.safe_load((PROJECT / "dagster.yaml").read_text())
    kept = {name: value for name, value in settings.items() if name not in STORAGE}
    (home / "dagster.yaml").write_text(yaml.safe_dump(kept, sort_keys=False))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        for event in known.values():
            instance.report_runless_asset_event(event)


def prune_runs(instance: dg.DagsterInstance, older_than: timedelta) -> Iterator[str]:
    """Delete the runs that are finished and began so long ago, with all their events, and yield the id of each.

    The runs of the last materialization and the last observation of each asset stay: automation goes by these.
    """
    kept = set()
    for key in instance.get_asset_keys():
        if event := instance.get_latest_materialization_event(key):
            kept.add(event.run_id)
        kept |= {record.event_log_entry.run_id for record in instance.fetch_observations(key, limit=1).records}
    before = dg.RunsFilter(statuses=FINISHED, created_before=datetime.now(UTC) - older_than)
    for run_id in instance.get_run_ids(before):
        if run_id not in kept:
            instance.delete_run(run_id)
            yield run_id
