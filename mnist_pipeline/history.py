"""The run history: opened, dead runs ended, old ones pruned; the beginning of that of an experiment."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import yaml
from dagster._core.definitions.data_version import INPUT_EVENT_POINTER_TAG_PREFIX  # Dagster has no public names
from dagster._core.errors import DagsterHomeNotSetError
from dagster._core.launcher import WorkerStatus

from mnist_pipeline.defs.engines.traces import read_traces
from mnist_pipeline.environment import PROJECT
from mnist_pipeline.problem import Problem

Known = dict[dg.AssetKey, dg.AssetMaterialization | dg.AssetObservation]

STORAGE = (
    *("storage", "run_storage", "event_log_storage", "schedule_storage"),
    *("local_artifact_storage", "compute_logs"),
)
"""The settings of an instance that say where its history lies."""

FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


@contextmanager
def run_history() -> Iterator[dg.DagsterInstance]:
    """Open the history of DAGSTER_HOME. Raises Problem if that is not set, or cannot be opened or reached."""
    try:
        with _instance() as instance:
            yield instance
    except _database_errors() as error:
        raise Problem(f"the run history cannot be reached: {error.__cause__ or error}") from error


def _instance() -> dg.DagsterInstance:
    try:
        return dg.DagsterInstance.get()
    except DagsterHomeNotSetError:
        raise Problem("set DAGSTER_HOME to the folder of the run history: that of make is $PWD/.dagster_home") from None
    except dg.DagsterInvariantViolationError as error:
        raise Problem(str(error)) from error


def _database_errors() -> tuple[type[Exception], ...]:
    from sqlalchemy.exc import DBAPIError

    try:
        from dagster_postgres.utils import DagsterPostgresException
    except ImportError:  # SQLite
        return (DBAPIError,)
    return DBAPIError, DagsterPostgresException


def end_lost(run_id: str) -> None:
    """End a run that nobody can look for any more, such as that of a machine that is gone.

    Raises Problem if there is no such run in progress.
    """
    with run_history() as instance:
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            raise Problem(f"there is no run {run_id} in progress")
        traces = read_traces(instance, run)
        _end(instance, run, "it is lost, said `recover --run`")
        for step, place in traces.elsewhere.items():
            where = f" of {place.cluster}" if place.cluster else ""
            print(f"{step} may still be at work, as {place.kind} {place.name}{where}: stop it there")


def recover() -> None:
    """End the runs whose processes are gone: they count as in progress, and hold their places in pools."""
    with run_history() as instance:
        if not instance.run_launcher.supports_check_run_worker_health:
            print(f"{type(instance.run_launcher).__name__} cannot tell whether runs are alive: none was looked at")
            return
        for run, why in end_dead_runs(instance):
            print(f"run {run.run_id}: {why}; where it trains, other trainings wait for it")
        storage = instance.event_log_storage
        for pool in storage.get_concurrency_keys():
            for run_id in storage.get_concurrency_info(pool).active_run_ids:
                if (holder := instance.get_run_by_id(run_id)) is None or holder.is_finished:
                    storage.free_concurrency_slots_for_run(run_id)  # it ended while its step had yet to
                    print(f"run {run_id} has ended: its place in the pool {pool} is free")


def end_dead_runs(instance: dg.DagsterInstance) -> list[tuple[dg.DagsterRun, str]]:
    """End the runs whose processes are gone, and return those that are alive, or count so, and why."""
    alive = []
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        health = instance.run_launcher.check_run_worker_health(run)
        now = instance.get_run_by_id(run.run_id)
        if not now or now.status != dg.DagsterRunStatus.STARTED:
            continue  # it ended while its processes were looked for
        if health.status == WorkerStatus.FAILED:
            _end(instance, run, f"it had died: {health.msg}")
        else:
            alive.append((run, health.msg or "it is at work"))
    return alive


def _end(instance: dg.DagsterInstance, run: dg.DagsterRun, why: str) -> None:
    # First, so that it is done again if this is killed in between.
    instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    instance.report_run_failed(run, why)
    print(f"run {run.run_id}: {why}; it is ended, its place in the training pool is free")


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

    Those by which automation goes stay, see `_in_use`.
    """
    kept = _in_use(instance)
    before = dg.RunsFilter(statuses=FINISHED, created_before=datetime.now(UTC) - older_than)
    for run_id in instance.get_run_ids(before):
        if run_id not in kept:
            instance.delete_run(run_id)
            yield run_id


def _in_use(instance: dg.DagsterInstance) -> set[str]:
    """Return the runs of the last events of each asset and of those it was made from, and the one that wrote last.

    SQLite numbers new events from the highest that is left: with the newest gone, cursors of sensors would be ahead.
    """
    kept = {found.dagster_run.run_id for found in instance.get_run_records(limit=1, order_by="update_timestamp")}
    for key in instance.get_asset_keys():
        kept |= {record.run_id for record in instance.fetch_observations(key, limit=1).records}
        event = instance.get_latest_materialization_event(key)
        if event is None:
            continue
        kept.add(event.run_id)
        for name, number in (event.tags or {}).items():
            if name.startswith(INPUT_EVENT_POINTER_TAG_PREFIX) and number.isdecimal():
                parent = dg.AssetKey.from_user_string(name.removeprefix(f"{INPUT_EVENT_POINTER_TAG_PREFIX}/"))
                made_from = dg.AssetRecordsFilter(parent, storage_ids=[int(number)])
                kept |= {record.run_id for record in instance.fetch_materializations(made_from, limit=1).records}
    return kept
