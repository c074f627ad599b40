"""Sweeps as Dagster runs them: which trials are due, the job that starts a sweep, the sensor that keeps it going."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES  # Dagster has no public name for it
from pydantic import Field

from mnist_pipeline.defs.assets.digit_classifier import digit_classifier
from mnist_pipeline.defs.assets.leaderboard import leaderboard
from mnist_pipeline.defs.assets.trial import TRIALS, TRIALS_POOL, trial
from mnist_pipeline.defs.jobs import EXPERIMENTS, TRAINING_JOBS, TRIAL_JOB
from mnist_pipeline.defs.resources.stores import ModelStoreResource

if TYPE_CHECKING:
    from mnist_pipeline.experiments.trials import Sweeps, Trial

PARTITION_TAG = "dagster/partition"

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
    from mnist_pipeline.stores.errors import ModelStoreError

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
    from mnist_pipeline.experiments.trials import MOST_FAILURES

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
        record = sweeps.read(name)
        while room > len(due):
            waiting = [t for t in record.trials if not t.is_done and record.name_of(t) not in {*running, *due}]
            if not waiting:
                before, record = record, sweeps.propose(name)
                if record == before:
                    break
                continue
            first = waiting[0]
            if len(ended := runs_of(instance, record.name_of(first))) >= MOST_FAILURES:
                given_up = f"given up after {len(ended)} runs without a result; the last was {ended[0].run_id}"
                record = sweeps.record(record.name_of(first), _given_up(first, given_up))
            else:
                due.append(record.name_of(first))
    return due


def runs_of(instance: dg.DagsterInstance, name: str) -> "list[dg.DagsterRun]":
    """Return the runs of a trial that have ended, the newest first."""
    ended = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.SUCCESS]
    return list(instance.get_runs(dg.RunsFilter(statuses=ended, tags={PARTITION_TAG: name})))


def pool_limit(instance: dg.DagsterInstance) -> int:
    """Return how many trials may be trained at a time: the limit of their pool, or the default one of the instance."""
    limits = {pool.name: pool.limit for pool in instance.event_log_storage.get_pool_limits()}
    default = instance.get_concurrency_config().pool_config.default_pool_limit
    return limits.get(TRIALS_POOL) or default or 1


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
        before = found.open()
        due = due_trials(context.instance, found) if before else []
        complete = sorted({*before} - {*found.open()}) if before else []
        if not due and not complete:
            return dg.SkipReason("no trial is due")
        return dg.SensorResult(
            run_requests=[*_trial_requests(context.instance, due), *map(_leaderboard_request, complete)],
            dynamic_partitions_requests=[TRIALS.build_add_request(due)] if due else [],
        )

    return sweeps


def _trial_requests(instance: dg.DagsterInstance, due: Iterable[str]) -> Iterable[dg.RunRequest]:
    for name in due:
        attempt = len(runs_of(instance, name))  # the same trial again needs another key
        yield dg.RunRequest(
            run_key=f"{name} {attempt}", asset_selection=[trial.key], partition_key=name, tags=TRIAL_RUN_TAGS
        )


def _leaderboard_request(sweep: str) -> dg.RunRequest:
    return dg.RunRequest(
        asset_selection=[leaderboard.key], run_config={"ops": {"leaderboard": {"config": {"sweep": sweep}}}}
    )


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


def _given_up(found: "Trial", why: str) -> "Trial":
    return found.model_copy(update={"problem": why})
