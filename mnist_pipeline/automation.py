"""When things run: jobs, automation conditions, and the alert for failed runs."""

import dagster as dg

from mnist_pipeline.assets.data import processed_mnist_data, raw_mnist_data
from mnist_pipeline.assets.model import digit_classifier, model_evaluation, production_digit_classifier
from mnist_pipeline.assets.predictions import batch_digit_predictions, digit_predictions

AC = dg.AutomationCondition
Select = dg.AssetSelection.assets

training_job = dg.define_asset_job(
    "training_job",
    Select(raw_mnist_data, processed_mnist_data, digit_classifier, model_evaluation),
    description="Data, a new candidate, and its scores. Deploys nothing.",
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
)
ALL_JOBS = [training_job, deployment_job, inference_job, full_pipeline_job]


def when_data_changed(ignoring: dg.AssetSelection | None = None) -> dg.AutomationCondition:
    """Run when missing, when the own code changed, or when the data version of a dependency really changed.

    Not when a dependency merely ran again with the same data version, nor while one is missing or in progress.
    A change in `ignoring` does not count.
    """
    changed_dep = AC.any_deps_match(AC.data_version_changed())
    if ignoring is not None:
        changed_dep = changed_dep.ignore(ignoring)
    handled = AC.newly_requested() | AC.newly_updated()
    changed = AC.newly_missing() | AC.code_version_changed() | changed_dep.with_label("dependency changed")
    idle = ~AC.any_deps_missing() & ~AC.any_deps_in_progress() & ~AC.in_progress()
    return (changed.since(handled) & idle).with_label("data or code changed")


def on_cron_if_changed(cron: str, timezone: str) -> dg.AutomationCondition:
    """`when_data_changed`, at most once a tick of `cron`; it stays armed after a tick at which nothing had changed."""
    due = AC.cron_tick_passed(cron, timezone).since(AC.newly_requested() | AC.newly_updated())
    first_time = AC.missing()
    return ((due | first_time) & when_data_changed()).with_label("due, and data or code changed")


def conditions(retrain_cron: str, raw_data_cron: str, timezone: str) -> dict[dg.AssetKey, dg.AutomationCondition]:
    """The condition of each asset. Real-time predictions are made on request only."""
    # The gate and the predictions read the test images, but a new model is what sets them off.
    test_images = Select(processed_mnist_data)
    return {
        raw_mnist_data.key: (AC.newly_missing() | AC.cron_tick_passed(raw_data_cron, timezone)) & ~AC.in_progress(),
        processed_mnist_data.key: when_data_changed(),
        digit_classifier.key: on_cron_if_changed(retrain_cron, timezone),
        model_evaluation.key: when_data_changed(ignoring=test_images),
        production_digit_classifier.key: when_data_changed(ignoring=test_images),
        batch_digit_predictions.key: when_data_changed(ignoring=test_images),
    }


AUTOMATION_SENSOR = dg.AutomationConditionSensorDefinition(
    "automation",
    target=dg.AssetSelection.all(include_sources=True),
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Evaluates the automation conditions. Switch it on in the UI under Automation.",
)
