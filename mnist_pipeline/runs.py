"""Runs of the whole graph from the command line: start one, end those that died, sum up the last one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster._check import CheckError  # Dagster has no public names for these three
from dagster._core.errors import DagsterHomeNotSetError
from dagster._core.launcher import WorkerStatus

from mnist_pipeline.defs.jobs import EVERYTHING
from mnist_pipeline.defs.run_config import ConfigInvalid
from mnist_pipeline.stores import ModelStore
from mnist_pipeline.stores.trail import Damaged

NEXT_STEPS = (
    "the page of production_digit_classifier shows the comparison. Below the threshold: train longer, or lower "
    "accuracy_threshold if it is too high for this data. Not shown to be as good: train with other settings, or give "
    "the gate more test images or a wider max_regression. All the same: strategy 'force', which needs a reason"
)
"""Words after a refusal."""

QUIET = {"console": {"config": {"log_level": "INFO"}}}
"""The loggers of a run that names none: Dagster's default tells of every event."""


class Problem(Exception):
    """The command cannot do what was asked; the message says why and what to do."""


def full_pipeline_job() -> dg.JobDefinition:
    """Return the job of everything; the processes of its steps find it by this function."""
    from mnist_pipeline.definitions import defs

    return defs.resolve_job_def(EVERYTHING)


def run(config: dict[str, Any]) -> None:
    """Materialize the whole graph in a run of this process.

    Raises Problem if a setting is not valid, and if the run fails; then its log said why.
    """
    with _instance() as instance:
        try:
            result = dg.execute_job(
                dg.reconstructable(full_pipeline_job), instance, run_config={"loggers": QUIET} | config
            )
        except dg.DagsterInvalidConfigError as error:
            raise Problem("; ".join(found.message.partition("\n")[0] for found in error.errors)) from error
        except (ConfigInvalid, CheckError) as error:
            raise Problem(f"the configuration is not valid: {error}") from error
    with result:
        if not result.success:
            raise Problem(f"the run {result.run_id} failed: its log is above, and in the UI (make dev)")


def read_config(file: Path) -> dict[str, Any]:
    """Return the configuration of a run in a YAML file. Raises Problem if it cannot be read."""
    try:
        config = yaml.safe_load(file.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise Problem(f"--config {file} cannot be read: {error}") from error
    if not isinstance(config, dict) or not all(isinstance(name, str) for name in config):
        raise Problem(f"--config {file} must have the form `ops: <step>: config: ...`, as the files in presets/ have")
    return config


@contextmanager
def _instance() -> Iterator[dg.DagsterInstance]:
    try:
        instance = dg.DagsterInstance.get()
    except DagsterHomeNotSetError:
        raise Problem("set DAGSTER_HOME to the folder of the run history: that of make is $PWD/.dagster_home") from None
    except dg.DagsterInvariantViolationError as error:
        raise Problem(str(error)) from error
    with instance:
        yield instance


def recover() -> None:
    """A run that was killed counts as in progress, and nobody else can train: it still holds its place in the pool."""
    with _instance() as instance:
        if not instance.run_launcher.supports_check_run_worker_health:
            print(f"{type(instance.run_launcher).__name__} cannot tell whether runs are alive: none was looked at")
            return
        for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
            health = instance.run_launcher.check_run_worker_health(run)
            now = instance.get_run_by_id(run.run_id)
            if not now or now.status != dg.DagsterRunStatus.STARTED:
                continue  # it ended while its processes were looked for
            if health.status == WorkerStatus.FAILED:
                # First, so that it is done again if this is killed in between.
                instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
                instance.report_run_failed(run, health.msg)
                print(f"run {run.run_id} had died: {health.msg}; it is ended, its place in the training pool is free")
            else:
                print(f"run {run.run_id} is at work: where it trains, other trainings wait for it")


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
    with _instance() as instance:
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
