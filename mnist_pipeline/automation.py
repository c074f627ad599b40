"""When things run: jobs, the condition of each asset, and the sensors that look at conditions and folders."""

import dagster as dg
from dagster import AutomationCondition as AC

from mnist_pipeline.assets.data import processed_mnist_data, raw_mnist_data
from mnist_pipeline.assets.deployment import production_digit_classifier
from mnist_pipeline.assets.model import digit_classifier, model_evaluation
from mnist_pipeline.assets.predictions import batch_digit_predictions, digit_predictions
from mnist_pipeline.conditions import (
    DATA_VERSION_TAG,
    on_cron_if_changed,
    on_cron_or_when_data_changed,
    when_data_changed,
)

Select = dg.AssetSelection.assets

MACHINE_LEARNING = [
    f"mnist_pipeline.ml.{name}" for name in ("data", "drift", "evaluation", "inference", "plots", "training")
]


def _forked_from(*modules: str) -> dg.ExecutorDefinition:
    """Each step is a process forked from a server that has imported `modules`."""
    return dg.multiprocess_executor.configured({"start_method": {"forkserver": {"preload_modules": list(modules)}}})


LIGHT_FORKSERVER = _forked_from("mnist_pipeline.definitions")
"""For automation's runs, of one or two steps, and for what is materialized by hand: a step imports what it needs."""

PRELOADED_FORKSERVER = _forked_from("mnist_pipeline.definitions", *MACHINE_LEARNING)
"""For runs of many steps: the server imports most, once, instead of every step by itself."""

training_job = dg.define_asset_job(
    "training_job",
    Select(raw_mnist_data, processed_mnist_data, digit_classifier, model_evaluation),
    description="Data, a new candidate, and its scores. Where automation is on, the gate decides about it next.",
    executor_def=PRELOADED_FORKSERVER,
)
deployment_job = dg.define_asset_job(
    "deployment_job",
    Select(production_digit_classifier),
    description="The gate alone: deploy the last evaluated candidate, a version by name, or with force.",
)
inference_job = dg.define_asset_job(
    "inference_job",
    Select(batch_digit_predictions, digit_predictions),
    description="Predictions with what is deployed.",
)
full_pipeline_job = dg.define_asset_job(
    "full_pipeline_job",
    dg.AssetSelection.all(),
    description="Everything, from raw data to predictions.",
    executor_def=PRELOADED_FORKSERVER,
)
ALL_JOBS = [training_job, deployment_job, inference_job, full_pipeline_job]


def conditions(
    *, retrain: str, retrain_cron: str, raw_data_cron: str, predict_cron: str, timezone: str
) -> dict[dg.AssetKey, AC]:
    """The condition of each asset. Real-time predictions are made on request only; sources are watched by sensors.

    `retrain` is `cron`, at most once a tick of `retrain_cron`, or `eager`, as soon as the data changed.
    """
    # The gate and the predictions read the test images too, but a new evaluation, a new model is what sets them off.
    ignoring = frozenset({processed_mnist_data.key})
    return {
        raw_mnist_data.key: on_cron_or_when_data_changed(raw_data_cron, timezone),
        processed_mnist_data.key: when_data_changed(),
        digit_classifier.key: when_data_changed() if retrain == "eager" else on_cron_if_changed(retrain_cron, timezone),
        model_evaluation.key: when_data_changed(),
        production_digit_classifier.key: when_data_changed(ignoring=ignoring),
        batch_digit_predictions.key: on_cron_or_when_data_changed(predict_cron, timezone, ignoring=ignoring),
    }


def automation_sensor(running: bool, every_seconds: int) -> dg.AutomationConditionSensorDefinition:
    """Evaluates the conditions of all assets and starts what they ask for."""
    return dg.AutomationConditionSensorDefinition(
        "automation",
        target=dg.AssetSelection.all(include_sources=True),
        default_status=_status(running),
        minimum_interval_seconds=every_seconds,
        use_user_code_server=True,  # for the condition that is ours
        description="Starts what the automation conditions ask for. AUTOMATION=off leaves it stopped.",
    )


def folder_sensor(source: dg.SourceAsset, resource_key: str, running: bool, every_seconds: int) -> dg.SensorDefinition:
    """Observes a source whenever its folder changed; a look at an unchanged folder costs no run and no reading.

    The resource tells `fingerprint()`, cheap, and `data_version()`, from the contents.
    """

    @dg.sensor(
        name=f"watch_{source.key.to_python_identifier()}",
        description=f"Observes {source.key.to_user_string()} when its folder changed.",
        asset_selection=dg.AssetSelection.assets(source.key),
        required_resource_keys={resource_key},
        default_status=_status(running),
        minimum_interval_seconds=every_seconds,
    )
    def watch(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        folder = getattr(context.resources, resource_key)
        latest = context.instance.get_latest_data_version_record(source.key, is_source=True)
        fingerprint = folder.fingerprint()  # first: what is written from here on changes it
        if latest and fingerprint == context.cursor:
            return dg.SkipReason("no file changed")
        version = folder.data_version()
        known = (latest.event_log_entry.tags or {}).get(DATA_VERSION_TAG) if latest else None
        observation = dg.AssetObservation(
            source.key,
            metadata={"location": dg.MetadataValue.path(folder.location or "none")},
            tags={DATA_VERSION_TAG: version},
        )
        return dg.SensorResult(asset_events=[] if version == known else [observation], cursor=fingerprint)

    return watch


def _status(running: bool) -> dg.DefaultSensorStatus:
    return dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED
