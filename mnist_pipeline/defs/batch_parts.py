"""Batch predictions in parts, each a step of its own on whatever engine."""

from typing import Any

import dagster as dg

from mnist_pipeline.defs.assets.batch_digit_predictions import BatchPredictionConfig, doubtful_of
from mnist_pipeline.defs.assets.production_digit_classifier import production_digit_classifier
from mnist_pipeline.defs.engines.compute import Compute
from mnist_pipeline.defs.predicting import batch_source, deployed_predictor, predict_share
from mnist_pipeline.defs.resources.folders import PredictionInputResource, PredictionsResource
from mnist_pipeline.defs.resources.stores import ModelStoreResource
from mnist_pipeline.defs.training import CRASH_RETRIES
from mnist_pipeline.ml.records import Splits

PART_COMPUTE = Compute(cores=1, memory_mib=2048)
"""The machine that a part takes: parts are there to be at work beside each other."""


def in_parts(asset: dg.AssetsDefinition, parts: int) -> dg.AssetsDefinition:
    """Return the asset of the batch predictions with a step for each part before its own, which puts them together.

    Its configuration, inputs, checks and conditions stay what they are.
    """
    gather = asset.op.with_replaced_properties(name="gather_predictions")
    keys = asset.keys_by_input_name
    [deployed] = [name for name, key in keys.items() if key == production_digit_classifier.key]
    steps = [_part(gather, number, parts) for number in range(parts)]
    outputs = list(gather.output_dict)

    @dg.graph(
        name=asset.op.name,
        ins={name: dg.GraphIn() for name in gather.input_dict},
        out={name: dg.GraphOut() for name in outputs},
        config=dg.ConfigMapping(
            lambda config: {name: {"config": config} for name in (*(step.name for step in steps), gather.name)},
            gather.config_schema.as_field() if gather.config_schema else None,
        ),
    )
    def composed(**inputs: Any) -> Any:
        done = [step(**inputs) for step in steps]
        gathered = gather(**inputs | {deployed: done})  # which the parts waited for
        return {name: getattr(gathered, name) for name in outputs}

    # Dagster has no public way to another node of the same asset.
    return type(asset).dagster_internal_init(**asset.get_attributes_dict() | {"node_def": composed})


def _part(gather: dg.OpDefinition, number: int, parts: int) -> dg.OpDefinition:
    """The step of one part; it waits for the same inputs as the asset."""

    @dg.op(
        name=f"predict_part_{number}",
        ins={name: dg.In(definition.dagster_type) for name, definition in gather.input_dict.items()},
        out=dg.Out(dg.Nothing),
        tags=PART_COMPUTE.tags(),
        retry_policy=CRASH_RETRIES,
    )
    def part(
        context: dg.OpExecutionContext,
        config: BatchPredictionConfig,
        processed_mnist_data: Splits,
        model_store: ModelStoreResource,
        predictions_dir: PredictionsResource,
        prediction_input_dir: PredictionInputResource,
    ) -> None:
        from mnist_pipeline.ml.inputs import Share

        predictor = deployed_predictor(model_store, processed_mnist_data.spec, PART_COMPUTE.threads())
        source = batch_source(config, processed_mnist_data, prediction_input_dir)
        if source.paths and not source.inputs.files:
            return
        share = Share(number, parts)
        result = predict_share(predictor, source, predictions_dir, share, config, doubtful_of(predictor, config))
        context.log.info(
            "part %d of %d: %d images, %d unreadable", number + 1, parts, result.images, result.error_count
        )

    return part
