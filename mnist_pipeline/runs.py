"""Runs from the command line: of the whole graph, of sweeps; sum up the last one."""

import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._check import CheckError  # Dagster has no public name for it

from mnist_pipeline.defs.assets.trial import TRIALS_NAME
from mnist_pipeline.defs.jobs import CANDIDATE_JOB, EVERYTHING, LEADERBOARD_JOB, TRIAL_JOB
from mnist_pipeline.defs.run_config import ConfigInvalid
from mnist_pipeline.defs.sweeping import INTERRUPTED_TAG, PARTITION_TAG, TRIAL_RUN_TAGS, due_trials
from mnist_pipeline.experiments.sweep import Sweep
from mnist_pipeline.experiments.trials import SweepRecord, Sweeps
from mnist_pipeline.files.yaml_file import read_mapping
from mnist_pipeline.history import end_dead_runs, recover, run_history
from mnist_pipeline.problem import Problem
from mnist_pipeline.stores import ModelStore
from mnist_pipeline.stores.trail import Damaged

NEXT_STEPS = (
    "the page of production_digit_classifier shows the comparison. Below the threshold: train longer, or lower "
    "accuracy_threshold if it is too high for this data. Not shown to be as good: train with other settings, or give "
    "the gate more test images or a wider max_regression. All the same: strategy 'force', which needs a reason"
)
"""Words after a refusal."""

RAW_DATA, DATA = "raw_mnist_data", "processed_mnist_data"

LOOK_SECONDS = 1
"""Between two looks if a trial is due."""

QUIET = {"console": {"config": {"log_level": "INFO"}}}
"""The loggers of a run that names none: Dagster's default tells of every event."""


def _job(name: str) -> dg.JobDefinition:
    from mnist_pipeline.definitions import defs

    return defs.resolve_job_def(name)


def full_pipeline_job() -> dg.JobDefinition:
    """Return the job of everything; the processes of its steps find it by this function."""
    return _job(EVERYTHING)


def trial_job() -> dg.JobDefinition:
    """Return the job of one trial."""
    return _job(TRIAL_JOB)


def leaderboard_job() -> dg.JobDefinition:
    """Return the job of the ranking of a sweep."""
    return _job(LEADERBOARD_JOB)


def candidate_job() -> dg.JobDefinition:
    """Return the job that sends a trial to evaluation and gate."""
    return _job(CANDIDATE_JOB)


def run(config: dict[str, Any]) -> None:
    """Materialize the whole graph in a run of this process.

    Raises Problem if a setting is not valid, and if the run fails; then its log said why.
    """
    with run_history() as instance:
        _succeed(_execute(instance, full_pipeline_job, config))


def run_candidate(name: str, settings: dict[str, str]) -> None:
    """Send what the settings of `digit_classifier` name to evaluation and gate, in a run of this process.

    Raises Problem if the run fails.
    """
    with run_history() as instance:
        print(f"{name} goes to evaluation and gate", flush=True)
        _succeed(_execute(instance, candidate_job, {"ops": {"digit_classifier": {"config": settings}}}))


def run_sweep(sweep: Sweep, sweeps: Sweeps) -> None:
    """Run the trials of a sweep in this process, one after the other, each in a run of its own, and rank them.

    Where the daemon runs trials of it, too, each is run by one of both. A trial whose run fails is tried again, some
    times. Raises Problem if there is no data to train on, or the ranking fails.
    """
    recover()
    with run_history() as instance, _interrupts() as interrupted:
        if instance.get_latest_materialization_event(dg.AssetKey(DATA)) is None:
            print(f"{DATA} is not there yet, and is made first", flush=True)
            _succeed(_execute(instance, full_pipeline_job, {}, [dg.AssetKey(name) for name in (RAW_DATA, DATA)]))
        sweeps.begin(sweep)
        told = False
        while not (record := sweeps.read(sweep.name)).is_complete:
            if sweep.name not in sweeps.open() and not sweeps.read(sweep.name).is_complete:
                print(f"{sweep.name} was stopped; the same command goes on with it")
                return
            due = due_trials(instance, sweeps, [sweep.name])
            if not due:
                if not told and not sweeps.read(sweep.name).is_complete:
                    print("waiting: trials are at work elsewhere, or a training of the main graph waits", flush=True)
                told = True
                time.sleep(LOOK_SECONDS)
                if instance.run_launcher.supports_check_run_worker_health:
                    end_dead_runs(instance)  # a step may have outlived its run, and be done by now
                continue
            told = False
            _run_trial(instance, sweeps, due[0], interrupted)
        sweeps.close(sweep.name)
        _succeed(
            _execute(instance, leaderboard_job, {"ops": {"leaderboard": {"config": {"sweep": record.sweep.name}}}})
        )


def _run_trial(instance: dg.DagsterInstance, sweeps: Sweeps, name: str, interrupted: Callable[[], bool]) -> None:
    record, trial = sweeps.chosen(name)
    done, planned = sum(found.is_done for found in record.trials), _planned(record)
    said = ", ".join(f"{setting}={value}" for setting, value in trial.values.items()) or "no change"
    print(f"trial {name} ({done + 1} of {planned}): {said}", flush=True)
    instance.add_dynamic_partitions(TRIALS_NAME, [name])
    with _execute(instance, trial_job, {}, tags={PARTITION_TAG: name, **TRIAL_RUN_TAGS}) as result:
        record, trial = sweeps.chosen(name)
        if interrupted():
            if not trial.is_done:
                instance.add_run_tags(result.run_id, {INTERRUPTED_TAG: "true"})  # that is no try that failed
            raise KeyboardInterrupt
    if trial.version:
        left = planned - done - 1
        minutes = f"; the other {left} need about {left * (trial.seconds or 0) / 60:.1f} min" if left > 0 else ""
        print(
            f"  validation accuracy {trial.validation_accuracy:.4f}, loss {trial.validation_loss:.4f}, "
            f"{trial.seconds:.1f} s of training{minutes}",
            flush=True,
        )
    else:
        print(f"  {trial.problem or 'the run ended without a result, and is tried again'}", flush=True)


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Give a function that tells if Ctrl-C or SIGTERM came.

    Dagster keeps them back during a run, ends the run if it still can, and then forgets them.
    """
    ours, pythons = socket.socketpair()
    with ours, pythons:
        for end in (ours, pythons):
            end.setblocking(False)
        before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)  # whoever else handles signals

        def interrupted() -> bool:
            try:
                return bool({signal.SIGINT, signal.SIGTERM} & set(ours.recv(4096)))
            except BlockingIOError:
                return False

        try:
            yield interrupted
        finally:
            signal.set_wakeup_fd(before)


def _planned(record: SweepRecord) -> int:
    """The number of trials that there will be, as far as it is known."""
    sweep = record.sweep
    if record.exhausted:
        return len(record.trials)
    return ((sweep.configurations or 0) + sweep.baseline) * len(sweep.seeds)


def _execute(
    instance: dg.DagsterInstance,
    job: Callable[[], dg.JobDefinition],
    config: dict[str, Any],
    assets: list[dg.AssetKey] | None = None,
    tags: dict[str, str] | None = None,
) -> dg.JobExecutionResult:
    try:
        return dg.execute_job(
            dg.reconstructable(job),
            instance,
            run_config={"loggers": QUIET} | config,
            asset_selection=assets,
            tags=tags,
        )
    except dg.DagsterInvalidConfigError as error:
        raise Problem("; ".join(found.message.partition("\n")[0] for found in error.errors)) from error
    except (ConfigInvalid, CheckError) as error:
        raise Problem(f"the configuration is not valid: {error}") from error


def _succeed(result: dg.JobExecutionResult) -> None:
    with result:
        if not result.success:
            raise Problem(f"the run {result.run_id} failed: its log is above, and in the UI (make dev)")


def read_config(file: Path) -> dict[str, Any]:
    """Return the configuration of a run in a YAML file. Raises Problem if it cannot be read."""
    try:
        return read_mapping(file, "`ops: <step>: config: ...`, as the files in presets/ have")
    except ValueError as error:
        raise Problem(f"--config {error}") from error


def print_summary(store: ModelStore) -> None:
    """One line a fact: from the last materialization of each asset in this DAGSTER_HOME, and from the store."""
    facts = {
        "data": ("raw_mnist_data", "data"),
        "trained last": ("digit_classifier", "model"),
        "its test accuracy": ("model_evaluation", "test_accuracy"),
        "predictions": ("batch_digit_predictions", "predictions"),
        "images predicted": ("batch_digit_predictions", "images"),
        "unreadable": ("batch_digit_predictions", "errors"),
        "predicted now": ("digit_predictions", "path"),
    }
    with run_history() as instance:
        for title, (asset, key) in facts.items():
            event = instance.get_latest_materialization_event(dg.AssetKey(asset))
            if event and event.asset_materialization:
                value = event.asset_materialization.metadata[key].value
                print(f"{title + ':':19}{value:.4f}" if isinstance(value, float) else f"{title + ':':19}{value}")
            elif asset == "raw_mnist_data":
                raise Problem(f"{asset} was never materialized in {instance.root_directory}: run `make run` first")
            else:  # the gate may have refused while nothing was deployed
                print(f"{title + ':':19}none")
    last, state = next(iter(store.decisions(1)), None), store.state()
    print(f"{'deployed:':19}{state.deployed.version if state.deployed else 'nothing'}")
    if last is None or isinstance(last, Damaged):
        print(f"{'last decision:':19}{f'damaged: {last.key}: {last.problem}' if last else 'nothing yet'}")
    else:
        print(f"{'last decision:':19}{last.outcome} ({last.strategy}, by {last.actor}): {last.reason}")
    if last and not isinstance(last, Damaged) and last.outcome == "refused":
        print(f"{'what to do next:':19}{NEXT_STEPS}")
    elif waiting := state.waiting:
        approve = f"python -m mnist_pipeline approve {waiting.version} --reason ..."
        print(f"{'what to do next:':19}{waiting.version} waits for approval: {approve}")
