"""The sensors that look at automation conditions and at folders."""

import dagster as dg

from mnist_pipeline.defs.conditions import DATA_VERSION_TAG


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


def _status(running: bool) -> dg.DefaultSensorStatus:
    return dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED
