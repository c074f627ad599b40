"""The sensors that look at automation conditions, at folders, and at what is deployed."""

from datetime import UTC, datetime

import dagster as dg
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES  # Dagster has no public name for it

from mnist_pipeline.defs.assets.model_evaluation import model_evaluation
from mnist_pipeline.defs.assets.production_digit_classifier import DECISION_ID, production_digit_classifier
from mnist_pipeline.defs.conditions import DATA_VERSION_TAG, INPUT_DATA_VERSION_TAG, tags_of
from mnist_pipeline.defs.observing import observation
from mnist_pipeline.files import folders
from mnist_pipeline.ml.manifest import Decision

ROOT_RUN_TAG = "dagster/root_run_id"
WILL_RETRY_TAG = "dagster/will_retry"


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
    The resource, a `WatchedFolderResource`, lists the files, and tells the data version from their contents.
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
        found = folder.walk()  # first: what is written from here on changes the fingerprint
        fingerprint = folders.fingerprint(found)
        if latest and fingerprint == context.cursor:
            return dg.SkipReason("no file changed")
        version = folder.data_version(found)
        known = tags_of(latest).get(DATA_VERSION_TAG)
        event = dg.AssetObservation(
            source,
            metadata=observation(folder, found),
            tags={DATA_VERSION_TAG: version},
        )
        return dg.SensorResult(asset_events=[] if version == known else [event], cursor=fingerprint)

    return watch


def deployment_sensor(running: bool, every_seconds: int) -> dg.SensorDefinition:
    """Return the sensor that brings a deployment from outside Dagster into it: a rollback or an approval by command.

    It starts one run of `production_digit_classifier` that decides nothing and records what is deployed. Predictions
    and messages follow as after a decision of the graph. A candidate that has yet to be decided about comes first: its
    decision records the deployment, too.
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
    def watch(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.RunRequest | dg.SkipReason:
        instance, deployed = context.instance, context.resources.model_store.production()
        if deployed is None or _is_recorded(instance, deployed):
            return dg.SkipReason("nothing is deployed, or it is recorded")
        if not all(
            instance.get_latest_materialization_event(key) for key in production_digit_classifier.dependency_keys
        ):
            return dg.SkipReason("what the asset reads was never materialized here")
        if _is_under_way(instance, deployed):
            return dg.SkipReason(f"the {deployed.actor}, which deployed {deployed.version}, records it itself")
        if _is_at_work(instance):
            return dg.SkipReason("a run of the asset is at work, and records it")
        undecided = _undecided_evaluation(instance)
        if undecided and context.cursor != undecided:  # automation has a tick's time to start its decision
            return dg.SensorResult(skip_reason="a candidate has yet to be decided about", cursor=undecided)
        config = {} if undecided else {"ops": {asset.to_python_identifier(): {"config": {"strategy": "observe"}}}}
        # Dagster starts no second run of a key, also where the first one failed: it is tried again each hour.
        hour = f"{datetime.now(UTC):%Y%m%dT%H}"
        return dg.RunRequest(run_key=f"{deployed.id} {undecided or 'observed'} {hour}", run_config=config)

    return watch


def _is_recorded(instance: dg.DagsterInstance, deployed: Decision) -> bool:
    """Return whether the latest materialization is about this deployment; earlier code named the version only."""
    event = instance.get_latest_materialization_event(production_digit_classifier.key)
    if event is None or event.asset_materialization is None:
        return False
    told = {name: value.value for name, value in event.asset_materialization.metadata.items()}
    return told[DECISION_ID] == deployed.id if DECISION_ID in told else told.get("deployed") == deployed.version


def _is_under_way(instance: dg.DagsterInstance, decision: Decision) -> bool:
    """Return whether the run that made a decision has yet to end, or to be started again after a crash."""
    run_id = decision.actor.removeprefix("run ")
    again = instance.get_runs(dg.RunsFilter(tags={ROOT_RUN_TAG: run_id}), limit=1)  # the newest
    run = again[0] if again else instance.get_run_by_id(run_id)
    return run is not None and (not run.is_finished or run.tags.get(WILL_RETRY_TAG) == "true")


def _is_at_work(instance: dg.DagsterInstance) -> bool:
    """Return whether a run that may materialize the asset has yet to end; those of jobs name no assets."""
    selections = [run.asset_selection for run in instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))]
    return any(selected is None or production_digit_classifier.key in selected for selected in selections)


def _undecided_evaluation(instance: dg.DagsterInstance) -> str | None:
    """Return the data version of the evaluation, if the asset was last built from another one."""
    evaluation = instance.get_latest_data_version_record(model_evaluation.key, is_source=False)
    built = instance.get_latest_data_version_record(production_digit_classifier.key, is_source=False)
    version = tags_of(evaluation).get(DATA_VERSION_TAG)
    built_from = tags_of(built).get(f"{INPUT_DATA_VERSION_TAG}/{model_evaluation.key.to_user_string()}")
    return version if built and version != built_from else None


def _status(running: bool) -> dg.DefaultSensorStatus:
    return dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED
