"""One training of a sweep for each partition."""

from collections.abc import Iterator
from functools import partial

import dagster as dg

from mnist_pipeline.defs.cards import kept_card
from mnist_pipeline.defs.conditions import NEVER
from mnist_pipeline.defs.resources.folders import CheckpointsResource
from mnist_pipeline.defs.resources.mlflow import MlflowResource, in_mlflow
from mnist_pipeline.defs.resources.stores import ModelStoreResource
from mnist_pipeline.defs.training import CRASH_RETRIES, TRAINING_COMPUTE, reporter, version_metadata
from mnist_pipeline.ml.records import Splits
from mnist_pipeline.ml.settings import TRAINING_CODE_VERSION

TRIALS_NAME = "trials"

TRIALS = dg.DynamicPartitionsDefinition(name=TRIALS_NAME)
"""The trials of all sweeps by their names, such as learning_rate/007-s0."""

TRIALS_POOL = "trials"


@dg.asset(
    group_name="experiments",
    kinds={"pytorch"},
    code_version=TRAINING_CODE_VERSION,
    partitions_def=TRIALS,
    pool=TRIALS_POOL,
    op_tags=TRAINING_COMPUTE.tags(),
    retry_policy=CRASH_RETRIES,
    automation_condition=NEVER,  # the sensor `sweeps` starts them
    check_specs=[
        dg.AssetCheckSpec(
            "trial_is_stored", asset="trial", description="The version of the trial is whole, or why not."
        )
    ],
)
def trial(
    context: dg.AssetExecutionContext,
    processed_mnist_data: Splits,
    model_store: ModelStoreResource,
    checkpoints: CheckpointsResource,
    mlflow: MlflowResource,
) -> Iterator[dg.MaterializeResult]:
    """A network trained with the settings of one trial of a sweep, as a version in the sweep's folder of the store.

    A killed trial continues after its last whole epoch; one that was trained is not trained again. One whose loss
    diverges counts as tried, too. `make sweep` starts sweeps, and so does `sweep_job`."""
    from mnist_pipeline.experiments.trials import Sweeps
    from mnist_pipeline.experiments.trying import run_trial
    from mnist_pipeline.stores.errors import ModelStoreError

    sweeps, name = Sweeps(model_store), context.partition_key
    try:
        record, _ = sweeps.chosen(name)
        report = partial(reporter, context)
        done = run_trial(sweeps, name, processed_mnist_data, checkpoints.path(), report, context.run_id)
    except ModelStoreError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    metadata: dict[str, dg.RawMetadataValue] = {
        "sweep": record.sweep.name,
        "configuration": done.configuration,
        "seed": done.seed,
        "values": dg.MetadataValue.json(done.values),
    }
    models, problem = sweeps.models(record.sweep.name), done.problem
    if done.version:
        try:
            manifest, _ = models.verify(done.version)
            metadata |= version_metadata(manifest) | kept_card(context, models, manifest.name)
            metadata |= in_mlflow(context, mlflow.mirror(context), models, manifest.name, registered=False)
        except ModelStoreError as error:
            problem = str(error)
    if problem:
        metadata["problem"] = problem
        context.log.warning("%s: %s", name, problem)
    yield dg.MaterializeResult(
        metadata=metadata,
        data_version=dg.DataVersion(done.model_dump_json(include={"version", "problem"})),
        check_results=[
            dg.AssetCheckResult(
                passed=problem is None,
                severity=dg.AssetCheckSeverity.WARN,
                check_name="trial_is_stored",
                description=problem,
                metadata={"trial": name},
            )
        ],
    )
