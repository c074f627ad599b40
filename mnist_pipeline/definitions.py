"""The one Definitions object: from the environment to assets, checks, jobs, sensors and resources."""

import os

import dagster as dg

from mnist_pipeline.defs import assets as asset_files
from mnist_pipeline.defs.alerts.channels import channels_from_environment
from mnist_pipeline.defs.alerts.sensor import alert_sensor
from mnist_pipeline.defs.assets.batch_digit_predictions import batch_digit_predictions
from mnist_pipeline.defs.assets.digit_classifier import RETRAIN, digit_classifier
from mnist_pipeline.defs.assets.raw_mnist_data import raw_code_version, raw_mnist_data
from mnist_pipeline.defs.batch_parts import in_parts
from mnist_pipeline.defs.conditions import scheduled
from mnist_pipeline.defs.engines.choosing import declaring_steps, executor
from mnist_pipeline.defs.io_managers import RecordIOManager, SafetensorsIOManager
from mnist_pipeline.defs.jobs import build_jobs, require_complete
from mnist_pipeline.defs.preloaded import DAGSTER, MACHINE_LEARNING
from mnist_pipeline.defs.resources.folders import (
    CheckpointsResource,
    LabelledImagesResource,
    PredictionInputResource,
    PredictionsResource,
    RawDataResource,
    ReviewResource,
)
from mnist_pipeline.defs.resources.mlflow import MlflowResource
from mnist_pipeline.defs.resources.stores import as_resource
from mnist_pipeline.defs.run_config import configure, read_pipeline_config
from mnist_pipeline.defs.sensors import automation_sensor, deployment_sensor, folder_sensor
from mnist_pipeline.defs.sweeping import sweep_job, sweep_sensor
from mnist_pipeline.environment import Environment
from mnist_pipeline.experiments.mlflow_mirror import mlflow_uri
from mnist_pipeline.stores import store_from_environment

PAGES = {"cards of versions": "models", "images to look at": "review"}
"""The service's pages that the page of each asset links to, where SERVICE_URL is set."""

WATCHED_FOLDERS = {"labelled_digits": "labelled_digits_dir", "prediction_input": "prediction_input_dir"}
"""The observed assets and the resources that know their folders."""


def build_definitions(environment: Environment) -> dg.Definitions:
    """Return all assets, checks, jobs and sensors over the resources of one deployment.

    Raises ConfigInvalid for a PIPELINE_CONFIG that the assets would refuse, EnvironmentInvalid for an engine that is
    not installed.
    """
    assets, sources = load_assets(environment)
    require_complete(assets)
    if unwatched := {source.key.to_user_string() for source in sources} - set(WATCHED_FOLDERS):
        raise dg.DagsterInvalidDefinitionError(f"no sensor watches {unwatched}: add them to WATCHED_FOLDERS")
    automated, every = environment.automation, environment.automation_seconds
    channels, declaring = channels_from_environment(environment), declaring_steps(assets)
    return dg.Definitions(
        assets=[*sources, *assets],
        # In runs of many steps the server imports most, once, instead of every step by itself.
        jobs=[*build_jobs(executor(environment, [*DAGSTER, *MACHINE_LEARNING], declaring)), sweep_job],
        sensors=[
            automation_sensor(automated, every),
            deployment_sensor(automated, every),
            sweep_sensor(automated, every),
            *(folder_sensor(dg.AssetKey(name), key, automated, every) for name, key in WATCHED_FOLDERS.items()),
            *(alert_sensor(channel, environment.dagster_webserver_url, every) for channel in channels),
        ],
        executor=executor(environment, DAGSTER, declaring),
        resources=resources(environment)
        | {channel.resource_key: channel.resource for channel in channels if channel.resource},
    )


def load_assets(environment: Environment) -> tuple[list[dg.AssetsDefinition], list[dg.SourceAsset]]:
    """Return the assets that are built, with the schedules and the defaults of the environment, and those observed."""
    loaded = dg.load_assets_from_package_module(asset_files)
    built = [asset for asset in loaded if isinstance(asset, dg.AssetsDefinition)]
    sources = [asset for asset in loaded if isinstance(asset, dg.SourceAsset)]
    file = environment.config_file()
    configured = configure(built, read_pipeline_config(file) if file else {}, f"PIPELINE_CONFIG {file}")
    if (parts := environment.prediction_parts) > 1:
        batch = batch_digit_predictions.key
        configured = [in_parts(asset, parts) if asset.key == batch else asset for asset in configured]
    return [_automated(asset, environment) for asset in configured], sources


def _automated(asset: dg.AssetsDefinition, environment: Environment) -> dg.AssetsDefinition:
    """The asset with the schedules of the environment in place of the defaults."""

    def automated(spec: dg.AssetSpec) -> dg.AssetSpec:
        if spec.key == raw_mnist_data.key:
            spec = spec.replace_attributes(code_version=raw_code_version(environment.dataset_settings()))
        condition = (
            RETRAIN[environment.model_retrain] if spec.key == digit_classifier.key else spec.automation_condition
        )
        links = {name: dg.MetadataValue.url(f"{service}/{page}") for name, page in PAGES.items()} if service else {}
        return spec.replace_attributes(
            automation_condition=condition and scheduled(condition, environment), metadata={**spec.metadata, **links}
        )

    service = environment.service_url and environment.service_url.rstrip("/")
    return asset.map_asset_specs(automated)


def resources(environment: Environment) -> dict[str, object]:
    """Return the resources of a deployment by their keys."""
    data_dir, endpoint_url = environment.place("data_dir", "data"), environment.s3_endpoint_url
    return {
        "tensor_io_manager": SafetensorsIOManager(base_path=data_dir, endpoint_url=endpoint_url),
        "record_io_manager": RecordIOManager(base_path=data_dir, endpoint_url=endpoint_url),
        "mlflow": MlflowResource(tracking_uri=mlflow_uri(environment), task=environment.task_name),
        "model_store": as_resource(store_from_environment(environment)),
        "raw_data": RawDataResource(**environment.dataset_settings().model_dump()),
        "labelled_digits_dir": LabelledImagesResource(
            location=environment.place("labelled_dir", "labelled"),
            endpoint_url=endpoint_url,
            links=environment.folder_links,
        ),
        "prediction_input_dir": PredictionInputResource(
            location=environment.input_folder(), endpoint_url=endpoint_url, links=environment.folder_links
        ),
        "checkpoints": CheckpointsResource(
            directory=environment.place("checkpoint_dir", "checkpoints"), endpoint_url=endpoint_url
        ),
        "review_dir": ReviewResource(location=environment.place("review_dir", "review"), endpoint_url=endpoint_url),
        "predictions_dir": PredictionsResource(
            location=environment.place("predictions_dir", "predictions"),
            endpoint_url=endpoint_url,
            parts=environment.prediction_parts,
        ),
    }


defs = build_definitions(Environment.read(os.environ))
