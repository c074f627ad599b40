"""Jobs."""

from collections.abc import Sequence

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,  # Dagster has no public name for what define_asset_job returns
)

EVERYTHING = "full_pipeline_job"
TRIAL_JOB, LEADERBOARD_JOB, CANDIDATE_JOB = "trial_job", "leaderboard_job", "candidate_job"
TRAINING_JOBS = ("training_job", EVERYTHING)
"""The jobs that train a candidate."""

EXPERIMENTS = dg.AssetSelection.groups("experiments")


def build_jobs(executor: dg.ExecutorDefinition | None = None) -> list[UnresolvedAssetJobDefinition]:
    """Return the jobs; those of many steps run by `executor`, the others by that of the definitions."""
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
