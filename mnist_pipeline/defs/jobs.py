"""Jobs, and the processes that their steps run in."""

from collections.abc import Iterable, Sequence

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,  # Dagster has no public name for what define_asset_job returns
)

from mnist_pipeline.defs.preloaded import DAGSTER, MACHINE_LEARNING

EVERYTHING = "full_pipeline_job"
TRIAL_JOB, LEADERBOARD_JOB, CANDIDATE_JOB = "trial_job", "leaderboard_job", "candidate_job"
TRAINING_JOBS = ("training_job", EVERYTHING)
"""The jobs that train a candidate."""

EXPERIMENTS = dg.AssetSelection.groups("experiments")


def _forked_from(modules: Iterable[str]) -> dg.ExecutorDefinition:
    """Each step is a process forked from a server that has imported `modules`."""
    return dg.multiprocess_executor.configured({"start_method": {"forkserver": {"preload_modules": list(modules)}}})


LIGHT_FORKSERVER = _forked_from(DAGSTER)
"""The executor of automation's short runs and of what is materialized by hand: a step imports what it needs."""

PRELOADED_FORKSERVER = _forked_from([*DAGSTER, *MACHINE_LEARNING])
"""The executor of runs of many steps: the server imports most, once, instead of every step by itself."""


@dg.executor(name="one_process_only")
def one_process_only(_: dg.InitExecutorContext) -> dg.Executor:
    """The executor of a deployment in memory: it refuses, since steps in processes of their own would find nothing."""
    raise dg.DagsterInvariantViolationError(
        "memory:// holds values within one process only, and this run would have several: use dg.materialize() or "
        "execute_in_process() in a notebook or a test, or set STORAGE_ROOT to a folder or a bucket"
    )


def build_jobs(executor: dg.ExecutorDefinition = PRELOADED_FORKSERVER) -> list[UnresolvedAssetJobDefinition]:
    """Return the jobs; those of many steps run by `executor`."""
    return [
        dg.define_asset_job(
            "training_job",
            ["raw_mnist_data", "processed_mnist_data", "digit_classifier", "model_evaluation"],
            description="Data, a new candidate, and its scores. Where automation is on, the gate decides next.",
            executor_def=executor,
        ),
        dg.define_asset_job(
            "deployment_job",
            ["production_digit_classifier"],
            description="The gate alone: deploy the last evaluated candidate, a version by name, or with force.",
        ),
        dg.define_asset_job(
            "inference_job",
            ["batch_digit_predictions", "digit_predictions"],
            description="Predictions with what is deployed.",
        ),
        dg.define_asset_job(
            EVERYTHING,
            dg.AssetSelection.all() - EXPERIMENTS,
            description="Everything, from raw data to predictions.",
            executor_def=executor,
        ),
        dg.define_asset_job(TRIAL_JOB, ["trial"], description="One trial of a sweep; the sensor `sweeps` runs it."),
        dg.define_asset_job("backtest_job", ["backtest"], description="Stored versions, scored again."),
        dg.define_asset_job(LEADERBOARD_JOB, ["leaderboard"], description="The ranking of a sweep."),
        dg.define_asset_job(
            CANDIDATE_JOB,
            ["digit_classifier", "model_evaluation", "production_digit_classifier"],
            description="The best trial of the sweep that was started last, or another one, to evaluation and gate.",
            config={"ops": {"digit_classifier": {"config": {"trial": "newest"}}}},
        ),
    ]


def require_complete(assets: Sequence[dg.AssetsDefinition]) -> None:
    """Raise DagsterInvalidDefinitionError if an asset lacks a condition, a check, or a place in a job of its own."""
    checked = {key.asset_key for asset in assets for key in asset.check_keys}
    jobs = [job for job in build_jobs() if job.name != EVERYTHING]
    in_a_job = {key for job in jobs for key in job.selection.resolve(assets)}
    for asset in assets:
        lacking = []
        if asset.key not in asset.automation_conditions_by_key:
            lacking.append("no automation_condition (NEVER for what runs on request only)")
        if asset.key not in checked:
            lacking.append("no check (`check_specs` of the asset)")
        if asset.key not in in_a_job:
            lacking.append("no job (a place in defs/jobs.py)")
        if lacking:
            raise dg.DagsterInvalidDefinitionError(f"{asset.key.to_user_string()} has {' and '.join(lacking)}")
