"""The sensors that look at automation conditions and at folders."""

import dagster as dg

from mnist_pipeline.defs.assets.production_digit_classifier import DECISION_ID, production_digit_classifier
from mnist_pipeline.defs.conditions import DATA_VERSION_TAG
from mnist_pipeline.ml.manifest import Decision
from mnist_pipeline.ml.settings import DeploymentSettings


def automation_sensor(running: bool, every_seconds: int) -> dg.AutomationConditionSensorDefinition:
    """Return the sensor that evaluates the conditions of all assets and starts what they ask for."""
    return dg.AutomationConditionSensorDefinition(
        "automation",
        target=dg.AssetSelection.all(include_sources=True),
        default_status=_status(running),
        minimum_interval_seconds=every_seconds,
        use_user_code_server=True,  # for the condition that is ours
        description="Starts what the automation conditions ask for. AUTOMATION=off leaves it stopped.",
    )


def folder_sensor(source: dg.AssetKey, resource_key: str, running: bool, every_seconds: int) -> dg.SensorDefinition:
    """Return the sensor that observes a source whenever its folder changed.

    A look at an unchanged folder costs no run and no reading.
    The resource tells `fingerprint()`, cheap, and `data_version()`, from the contents.
    """

    @dg.sensor(
        name=f"watch_{source.to_python_identifier()}",
        description=f"Observes {source.to_user_string()} when its folder changed.",
        asset_selection=dg.AssetSelection.assets(source),
        required_resource_keys={resource_key},
        default_status=_status(running),
        minimum_interval_seconds=every_seconds,
    )
    def watch(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        folder = getattr(context.resources, resource_key)
        latest = context.instance.get_latest_data_version_record(source, is_source=True)
        fingerprint = folder.fingerprint()  # first: what is written from here on changes it
        if latest and fingerprint == context.cursor:
            return dg.SkipReason("no file changed")
        version = folder.data_version()
        known = (latest.event_log_entry.tags or {}).get(DATA_VERSION_TAG) if latest else None
        observation = dg.AssetObservation(
            source,
            metadata={"location": dg.MetadataValue.path(folder.location or "none")},
            tags={DATA_VERSION_TAG: version},
        )
        return dg.SensorResult(asset_events=[] if version == known else [observation], cursor=fingerprint)

    return watch


def deployment_sensor(running: bool, every_seconds: int) -> dg.SensorDefinition:
    """Return the sensor that brings a deployment from outside Dagster into it: a rollback or an approval by command.

    It starts one run of `production_digit_classifier` that decides nothing and records what is deployed. Predictions
    and messages follow as after a decision of the graph.
    """
    asset = production_digit_classifier.key

    @dg.sensor(
        name="watch_deployment",
        description="Records a rollback or an approval on the command line as what is deployed.",
        asset_selection=dg.AssetSelection.assets(asset) | dg.AssetSelection.checks_for_assets(asset),
        required_resource_keys={"model_store"},
        default_status=_status(running),
        minimum_interval_seconds=every_seconds,
    )
    def watch(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        deployed = context.resources.model_store.production()
        latest = context.instance.get_latest_materialization_event(asset)
        if deployed is None or latest is None or latest.asset_materialization is None:
            return dg.SkipReason("nothing is deployed, or nothing was ever materialized here")
        recorded = latest.asset_materialization.metadata.get(DECISION_ID)
        if recorded is None or recorded.value == deployed.id:  # without one: a materialization of earlier code
            return dg.SkipReason("what is deployed is recorded")
        if _is_under_way(context.instance, deployed):
            return dg.SkipReason(f"the {deployed.actor}, which deployed {deployed.version}, records it itself")
        # All settings, also those with a default: PIPELINE_CONFIG may have others, which only a decision can have.
        settings = DeploymentSettings(strategy="observe").model_dump(exclude_none=True)
        return dg.RunRequest(
            run_key=deployed.id, run_config={"ops": {asset.to_python_identifier(): {"config": settings}}}
        )

    return watch


def _is_under_way(instance: dg.DagsterInstance, decision: Decision) -> bool:
    """Return whether the run that made a decision has yet to end."""
    run = instance.get_run_by_id(decision.actor.removeprefix("run "))
    return run is not None and not run.is_finished


def _status(running: bool) -> dg.DefaultSensorStatus:
    return dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED
