"""Sweeps as Dagster runs them: which trials are due, the job that starts a sweep, the sensor that keeps it going."""

import logging
from datetime import datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES  # Dagster has no public name for it
from pydantic import Field

from mnist_pipeline.defs.assets.digit_classifier import digit_classifier
from mnist_pipeline.defs.assets.leaderboard import leaderboard
from mnist_pipeline.defs.assets.trial import TRIALS, TRIALS_POOL, trial
from mnist_pipeline.defs.jobs import EXPERIMENTS, TRAINING_JOBS, TRIAL_JOB
from mnist_pipeline.defs.resources.stores import ModelStoreResource
from mnist_pipeline.stores.errors import ModelStoreError, UnknownModel

if TYPE_CHECKING:
    from mnist_pipeline.experiments.trials import Sweeps

log = logging.getLogger(__name__)

MOST_FAILURES = 3
"""A trial whose runs ended so often without a result is given up: something else is wrong than a lost process."""

PARTITION_TAG = "dagster/partition"

INTERRUPTED_TAG = "mnist_pipeline/interrupted"
"""The tag of runs that Ctrl-C ended: they are no tries that failed."""

TRIAL_RUN_TAGS = {
    "dagster/priority": "-1",  # a run of the main graph that waits in the queue goes first
    "dagster/max_retries": "0",  # what is due is told here, also after a crash
}

AT_WORK = [status for status in NOT_FINISHED_STATUSES if status != dg.DagsterRunStatus.NOT_STARTED]
"""A run that was made and never started is one of a killed process."""


class SweepConfig(dg.Config):
    """The sweep, in the words of the files in `sweeps/`."""

    name: str = Field(description="Small letters, figures and underscores.")
    method: str = Field("tpe", description="grid, random, tpe, or best.")
    configurations: int | None = Field(None, description="How many are tried, besides the one without a change.")
    baseline: bool = Field(True, description="First try the configuration without a change.")
    seeds: list[int] = Field([0], description="Each configuration is trained with each.")
    metric: str = Field("validation_accuracy", description="validation_accuracy or validation_loss.")
    search_seed: int = Field(0, description="With random and tpe: another one tries other values.")
    settings: dict[str, Any] = Field({}, description="Settings that all trials share.")
    space: dict[str, Any] = Field({}, description="The settings that are varied: choices, or low and high (step, log).")
    best_of: str | None = Field(None, description="With best: the other sweep.")


@dg.op
def start_sweep(context: dg.OpExecutionContext, config: SweepConfig, model_store: ModelStoreResource) -> None:
    """Start a sweep, or go on with one that was stopped; the sensor `sweeps` runs its trials."""
    from mnist_pipeline.experiments.sweep import SweepInvalid, parse_sweep
    from mnist_pipeline.experiments.trials import Sweeps

    given = {name: value for name, value in config.model_dump().items() if name in config.model_fields_set}
    try:
        record = Sweeps(model_store).begin(parse_sweep(given, "the configuration"))
    except (SweepInvalid, ModelStoreError) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    context.log.info("%s has %d trials so far", record.sweep.name, len(record.trials))


@dg.job(name="sweep_job", description="Start a sweep: settings are tried, and ranked on the page of `leaderboard`.")
def sweep_job() -> None:
    """The job with the one step."""
    start_sweep()


def due_trials(instance: dg.DagsterInstance, sweeps: "Sweeps", names: list[str] | None = None) -> list[str]:
    """Return the trials of `names`, or of all open sweeps, that a run is to be started for now.

    They are as many as the pool `trials` has room for, and none while a training of the main graph waits to begin.
    Trials whose run ended without a result come first; after so many of those that something else must be wrong, a
    trial is given up, and the record says so.
    """
    names = sweeps.open() if names is None else names
    if not names:
        return []
    at_work = instance.get_runs(dg.RunsFilter(statuses=AT_WORK))
    if any(_waits_to_train(instance, run) for run in at_work):
        return []
    running = {run.tags[PARTITION_TAG] for run in at_work if _is_of_trial(run)}
    room = pool_limit(instance) - len(running)
    due: list[str] = []
    for name in names:
        try:
            due += _due_of(instance, sweeps, name, running, room - len(due))
        except UnknownModel:  # deleted while it was open
            sweeps.close(name)
        except ModelStoreError as error:
            log.warning("no trials of the sweep %s begin: %s", name, error)
    return due


def _due_of(instance: dg.DagsterInstance, sweeps: "Sweeps", name: str, running: set[str], room: int) -> list[str]:
    """The trials of one sweep that are due, at most so many."""
    record, due = sweeps.read(name), list[str]()
    while room > len(due):
        waiting = [t for t in record.trials if not t.is_done and record.name_of(t) not in {*running, *due}]
        if not waiting:
            before, record = record, sweeps.propose(name)
            if record == before:
                break
            continue
        trial_name = record.name_of(waiting[0])
        if len(ended := failed_runs(instance, trial_name, record.started_at)) >= MOST_FAILURES:
            last = f"the last, {ended[0].run_id}: {_why(instance, ended[0])}"
            why = f"given up after {len(ended)} runs without a result; {last}"
            record = sweeps.record(trial_name, waiting[0].model_copy(update={"problem": why}))
        else:
            due.append(trial_name)
    return due


def failed_runs(instance: dg.DagsterInstance, name: str, since: datetime) -> "list[dg.DagsterRun]":
    """Return the runs of a trial that ended without a result since its sweep began, the newest first."""
    ended = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    wanted = dg.RunsFilter(statuses=ended, tags={PARTITION_TAG: name}, created_after=since)
    return [run for run in instance.get_runs(wanted) if INTERRUPTED_TAG not in run.tags]


def _why(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """The error of the step of a run, in a line."""
    entries = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    failures = [entry.dagster_event.step_failure_data for entry in entries if entry.dagster_event]
    error = failures[-1].error if failures else None
    said = (error.cause or error).message.strip() if error else "its process was lost"
    return said.partition("\n")[0]


def pool_limit(instance: dg.DagsterInstance) -> int:
    """Return how many trials may be trained at a time: the limit of their pool, or the default one of the instance."""
    limits = {pool.name: pool.limit for pool in instance.event_log_storage.get_pool_limits()}
    default = instance.get_concurrency_config().pool_config.default_pool_limit
    limit = limits.get(TRIALS_POOL, default)
    return 1 if limit is None else limit


def sweep_sensor(running: bool, every_seconds: int) -> dg.SensorDefinition:
    """Return the sensor that runs the trials of all open sweeps, each in a run of its own."""

    @dg.sensor(
        name="sweeps",
        description="Runs the trials of open sweeps, and the leaderboard of each that is complete.",
        asset_selection=EXPERIMENTS | dg.AssetSelection.checks_for_assets(trial.key, leaderboard.key),
        default_status=dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=every_seconds,
    )
    def sweeps(context: dg.SensorEvaluationContext, model_store: ModelStoreResource) -> dg.SensorResult | dg.SkipReason:
        from mnist_pipeline.experiments.trials import Sweeps

        found = Sweeps(model_store)
        opened = found.open()
        due = due_trials(context.instance, found, opened)
        complete = [name for name in opened if _is_complete(found, name)]
        if not due and not complete:
            return dg.SkipReason("no trial is due")
        requests = [_trial_request(context.instance, found, name) for name in due]
        ranked = [_leaderboard_request(found, name) for name in complete]
        for name in complete:
            found.close(name)
        return dg.SensorResult(
            run_requests=[*requests, *ranked],
            dynamic_partitions_requests=[TRIALS.build_add_request(due)] if due else [],
        )

    return sweeps


def _is_complete(sweeps: "Sweeps", name: str) -> bool:
    try:
        return sweeps.read(name).is_complete
    except ModelStoreError:  # it was told where its trials are due
        return False


def _trial_request(instance: dg.DagsterInstance, sweeps: "Sweeps", name: str) -> dg.RunRequest:
    since = sweeps.chosen(name).record.started_at
    attempt = len(failed_runs(instance, name, since))
    # Dagster starts no second run of a key: the same trial again, or of a later sweep of this name, needs another one.
    key = f"{name} {since:%Y%m%dT%H%M%S} {attempt}"
    return dg.RunRequest(run_key=key, asset_selection=[trial.key], partition_key=name, tags=TRIAL_RUN_TAGS)


def _leaderboard_request(sweeps: "Sweeps", name: str) -> dg.RunRequest:
    config = {"ops": {leaderboard.op.name: {"config": {"sweep": name}}}}
    key = f"leaderboard {name} {sweeps.read(name).digest()[:16]}"
    return dg.RunRequest(run_key=key, asset_selection=[leaderboard.key], run_config=config)


def _is_of_trial(run: dg.DagsterRun) -> bool:
    if PARTITION_TAG not in run.tags:
        return False
    return run.job_name == TRIAL_JOB or trial.key in (run.asset_selection or ())


def _waits_to_train(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Return whether a run will train a candidate, and has not begun to."""
    step = digit_classifier.op.name
    selected = run.asset_selection
    if digit_classifier.key not in selected if selected else run.job_name not in TRAINING_JOBS:
        return False
    stats = instance.get_run_step_stats(run.run_id, [step])
    return not any(found.start_time for found in stats)
