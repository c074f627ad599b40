"""The one Definitions object: from the environment to resources."""

import os

import dagster as dg

from mnist_pipeline import automation, checks
from mnist_pipeline.alerts import Slack, slack_sensor
from mnist_pipeline.assets import data, deployment, model, predictions
from mnist_pipeline.assets.data import LabelledDigitsResource, RawDataResource
from mnist_pipeline.assets.model import CheckpointsResource
from mnist_pipeline.assets.predictions import PredictionInputResource, PredictionsResource
from mnist_pipeline.environment import Environment
from mnist_pipeline.io_managers import RecordIOManager, SafetensorsIOManager
from mnist_pipeline.stores.chosen import chosen_store

ASSETS = [
    data.raw_mnist_data,
    data.processed_mnist_data,
    model.digit_classifier,
    model.model_evaluation,
    deployment.production_digit_classifier,
    predictions.batch_digit_predictions,
    predictions.digit_predictions,
]


def build_definitions(environment: Environment) -> dg.Definitions:
    """All assets, checks, jobs and sensors over the resources of one deployment."""
    data_dir, endpoint_url = environment.place("data_dir", "data"), environment.s3_endpoint_url
    conditions = automation.conditions(
        retrain=environment.model_retrain,
        retrain_cron=environment.retrain_cron,
        raw_data_cron=environment.raw_data_cron,
        predict_cron=environment.predict_cron,
        timezone=environment.cron_timezone,
    )
    automated, every = environment.automation == "on", environment.automation_seconds
    return dg.Definitions(
        assets=[
            data.labelled_digits,
            predictions.prediction_input,
            *(asset.with_attributes(automation_condition=conditions.get(asset.key)) for asset in ASSETS),
        ],
        asset_checks=checks.ALL_CHECKS,
        jobs=automation.ALL_JOBS,
        sensors=[
            automation.automation_sensor(automated, every),
            automation.folder_sensor(data.labelled_digits, "labelled_digits_dir", automated, every),
            automation.folder_sensor(predictions.prediction_input, "prediction_input_dir", automated, every),
            slack_sensor(
                Slack(
                    token=environment.slack_bot_token,
                    channel=environment.slack_channel,
                    kinds=environment.alert_kinds(),
                    api_url=environment.slack_api_url,
                    webserver_url=environment.dagster_webserver_url,
                ),
                every,
            ),
        ],
        executor=automation.LIGHT_FORKSERVER,
        resources={
            "tensor_io_manager": SafetensorsIOManager(base_path=data_dir, endpoint_url=endpoint_url),
            "record_io_manager": RecordIOManager(base_path=data_dir, endpoint_url=endpoint_url),
            "model_store": chosen_store(environment),
            "raw_data": RawDataResource(
                source=environment.mnist_source, directory=environment.local_place("mnist_dir", "mnist")
            ),
            "labelled_digits_dir": LabelledDigitsResource(
                location=environment.place("labelled_dir", "labelled"), endpoint_url=endpoint_url
            ),
            "prediction_input_dir": PredictionInputResource(location=environment.input_folder()),
            "checkpoints": CheckpointsResource(directory=environment.local_place("checkpoint_dir", "checkpoints")),
            "predictions_dir": PredictionsResource(
                location=environment.place("predictions_dir", "predictions"), endpoint_url=endpoint_url
            ),
        },
    )


defs = build_definitions(Environment.read(os.environ))
