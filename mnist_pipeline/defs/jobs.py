"""Jobs, and the processes that their steps run in."""

from collections.abc import Iterable, Sequence

import dagster as dg

PRELOADED_MODULES = [
    "mnist_pipeline.definitions",
    *(f"mnist_pipeline.ml.{name}" for name in ("data", "drift", "evaluation", "inference", "plots", "training")),
]


def _forked_from(modules: Iterable[str]) -> dg.ExecutorDefinition:
    """Each step is a process forked from a server that has imported `modules`."""
    return dg.multiprocess_executor.configured({"start_method": {"forkserver": {"preload_modules": list(modules)}}})


LIGHT_FORKSERVER = _forked_from(["mnist_pipeline.definitions"])
"""The executor of automation's short runs and of what is materialized by hand: a step imports what it needs."""

PRELOADED_FORKSERVER = _forked_from(PRELOADED_MODULES)
"""The executor of runs of many steps: the server imports most, once, instead of every step by itself."""

training_job = dg.define_asset_job(
    "training_job",
    ["raw_mnist_data", "processed_mnist_data", "digit_classifier", "model_evaluation"],
    description="Data, a new candidate, and its scores. Where automation is on, the gate decides about it next.",
    executor_def=PRELOADED_FORKSERVER,
)
deployment_job = dg.define_asset_job(
    "deployment_job",
    ["production_digit_classifier"],
    description="The gate alone: deploy the last evaluated candidate, a version by name, or with force.",
)
inference_job = dg.define_asset_job(
    "inference_job",
    ["batch_digit_predictions", "digit_predictions"],
    description="Predictions with what is deployed.",
)
full_pipeline_job = dg.define_asset_job(
    "full_pipeline_job",
    dg.AssetSelection.all(),
    description="Everything, from raw data to predictions.",
    executor_def=PRELOADED_FORKSERVER,
)
JOBS = [training_job, deployment_job, inference_job, full_pipeline_job]


def require_complete(assets: Sequence[dg.AssetsDefinition], checks: Sequence[dg.AssetChecksDefinition]) -> None:
    """Raise DagsterInvalidDefinitionError if an asset lacks a condition, a check, or a place in a job of its own."""
    checked = {key.asset_key for check in checks for key in check.check_keys}
    jobs = [job for job in JOBS if job is not full_pipeline_job]
    in_a_job = {key for job in jobs for key in job.selection.resolve(assets)}
    for asset in assets:
        lacking = []
        if asset.key not in asset.automation_conditions_by_key:
            lacking.append("no automation_condition (NEVER for what runs on request only)")
        if asset.key not in checked:
            lacking.append("no check (an asset_check in the same file)")
        if asset.key not in in_a_job:
            lacking.append("no job (a place in defs/jobs.py)")
        if lacking:
            raise dg.DagsterInvalidDefinitionError(f"{asset.key.to_user_string()} has {' and '.join(lacking)}")
