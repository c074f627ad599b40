"""A trained candidate."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field, model_validator

from mnist_pipeline.defs.cards import kept_card
from mnist_pipeline.defs.conditions import cron_tick, eager_if_data_changed, new_labels, on_cron_if_data_changed
from mnist_pipeline.defs.metadata import picture, table
from mnist_pipeline.defs.resources.folders import CheckpointsResource, ReviewResource
from mnist_pipeline.defs.resources.mlflow import MlflowResource, in_mlflow
from mnist_pipeline.defs.resources.stores import ModelStoreResource
from mnist_pipeline.defs.reviewing import MOST_TO_REVIEW, to_review
from mnist_pipeline.defs.training import CRASH_RETRIES, TRAINING_COMPUTE, reporter, version_metadata
from mnist_pipeline.ml.manifest import ModelManifest
from mnist_pipeline.ml.records import ModelRecord, Splits
from mnist_pipeline.ml.settings import TRAINING_CODE_VERSION, TrainingSettings
from mnist_pipeline.variables import Place

if TYPE_CHECKING:
    from mnist_pipeline.ml.improbable import Improbable

TRAINING_POOL = "training"
LISTED_KINDS, PICTURED_LABELS, PICTURED_BYTES = 5, 10, 2000
"""The commonest kinds of improbable labels are listed, and some labels pictured; all are on /review."""

RETRAIN = {
    "on_cron": on_cron_if_data_changed(cron_tick("RETRAIN_CRON"), sooner=new_labels()),
    "eager": eager_if_data_changed(),
}
"""The condition by MODEL_RETRAIN."""


class ModelConfig(dg.Config, TrainingSettings):  # type: ignore[misc]  # of pydantic's plugin, for three bases
    """Architecture, augmentation and recipe of the candidate, or the version that is to be the candidate."""

    trial: str | None = Field(
        None,
        description="A trial that is taken as the candidate instead of training one, such as learning_rate/007-s0; of "
        "the name of a sweep its best one, of `newest` that of the sweep that was started last. The other settings "
        "have no effect then.",
    )
    version: str | None = Field(
        None,
        description="A version that is taken as the candidate instead of training one. It may have been trained on "
        "other images, but on none of the test images of now. The other settings have no effect then.",
    )
    version_store: Place | None = Field(
        None, description="Of `version`: the folder or address of the store that has it, where it is another one."
    )

    @model_validator(mode="after")
    def _one_candidate(self) -> "ModelConfig":
        if self.trial and self.version:
            raise ValueError("trial and version both name the candidate: set one of them")
        if self.version_store and not self.version:
            raise ValueError("version_store would be ignored without version: set both, or neither")
        return self


@dg.asset(
    group_name="model_pipeline",
    kinds={"pytorch"},
    code_version=TRAINING_CODE_VERSION,
    io_manager_key="record_io_manager",
    pool=TRAINING_POOL,
    op_tags=TRAINING_COMPUTE.tags(),
    retry_policy=CRASH_RETRIES,
    automation_condition=RETRAIN["on_cron"],
    dagster_type=dg.PythonObjectDagsterType(ModelRecord),
    check_specs=[
        dg.AssetCheckSpec(
            "stored_candidate_is_sound",
            asset="digit_classifier",
            description="The stored candidate is whole, finite, and the one trained.",
        )
    ],
)
def digit_classifier(
    context: dg.AssetExecutionContext,
    config: ModelConfig,
    processed_mnist_data: Splits,
    model_store: ModelStoreResource,
    checkpoints: CheckpointsResource,
    review_dir: ReviewResource,
    mlflow: MlflowResource,
) -> Iterator[dg.Output[ModelRecord] | dg.AssetCheckResult]:
    """A network trained on the train split, as a new immutable version in the model store.

    Its weights are averaged, of the epoch with the least validation loss. A killed training continues after its last
    whole epoch. Labels that it finds improbable are to be looked at on /review. With `trial` or `version` in its
    configuration it is a version that was trained already."""
    if config.trial or config.version:
        yield from _taken(context, config, processed_mnist_data, model_store, mlflow, checkpoints.endpoint_url)
        return
    from mnist_pipeline.ml.errors import ModelError
    from mnist_pipeline.ml.export import export
    from mnist_pipeline.ml.improbable import improbable_items
    from mnist_pipeline.ml.training import TrainingDiverged, discard_checkpoint, train, training_fingerprint
    from mnist_pipeline.stores.candidates import save_trained
    from mnist_pipeline.stores.datasets import keep_splits

    splits, folder = processed_mnist_data, checkpoints.path()
    settings = TrainingSettings(**config.model_dump(include={*TrainingSettings.model_fields}))
    if mirror := mlflow.mirror(context):
        mirror.training_begins(settings.model_dump(), training_fingerprint(settings, splits), model_store.address)
    try:
        result = train(settings, splits, reporter(context, settings.epochs, mirror), folder)
        exported = export(result.weights, settings, splits)
        improbable = _improbable_labels(result.weights, settings, splits)  # a failure once it is saved saves another
    except (TrainingDiverged, ModelError, ValueError) as error:
        if mirror:
            mirror.training_failed(str(error))
        raise dg.Failure(str(error), allow_retries=False) from error
    kept = keep_splits(model_store, splits)
    manifest = save_trained(model_store, result, exported, settings, splits, kept, context.run_id)
    try:
        discard_checkpoint(settings, splits, folder)
    except OSError as error:  # the version is saved: trying again would save another one
        context.log.warning("the checkpoint could not be removed: %s", error)
    items = improbable_items(improbable, (splits.train, splits.validation), splits.spec, manifest.name)
    yield dg.Output(
        record := _record(manifest),
        data_version=dg.DataVersion(str(manifest.digests)),
        metadata={
            **version_metadata(manifest),
            "stopped_early": result.stopped_early,
            "resumed_after_epoch": result.resumed_after,
            **kept_card(context, model_store, manifest.name),
            **in_mlflow(context, mirror, model_store, manifest.name),
            **_improbable_metadata(improbable, splits),
            **to_review(context, review_dir, items, MOST_TO_REVIEW),
        },
    )
    yield stored_candidate_is_sound(record, model_store)


def _taken(
    context: dg.AssetExecutionContext,
    config: ModelConfig,
    splits: Splits,
    store: ModelStoreResource,
    mlflow: MlflowResource,
    s3_endpoint_url: str | None,
) -> Iterator[dg.Output[ModelRecord] | dg.AssetCheckResult]:
    """A trial of a sweep, or a version of any store, as the candidate."""
    from mnist_pipeline.experiments.candidate import take_candidate, take_version
    from mnist_pipeline.ml.errors import ModelError
    from mnist_pipeline.stores import store_at
    from mnist_pipeline.stores.errors import ModelStoreError

    try:
        if config.trial:
            manifest = take_candidate(store, config.trial, splits)
        else:
            source = store_at(config.version_store, s3_endpoint_url) if config.version_store else store
            manifest = take_version(store, source, config.version or "", splits)
    except (ModelStoreError, ModelError) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    yield dg.Output(
        record := _record(manifest),
        data_version=dg.DataVersion(str(manifest.digests)),
        metadata={
            **version_metadata(manifest),
            **kept_card(context, store, manifest.name),
            **in_mlflow(context, mlflow.mirror(context), store, manifest.name),
            "trial": manifest.training.trial,
            "version_store": config.version_store,
        },
    )
    yield stored_candidate_is_sound(record, store)


def _record(manifest: ModelManifest) -> ModelRecord:
    epochs, best_epoch = manifest.training.epochs, manifest.training.best_epoch or 0
    best = epochs[best_epoch - 1]
    return ModelRecord(
        name=manifest.name,
        weights_sha256=manifest.weights_sha256,
        onnx_sha256=manifest.onnx_sha256,
        validation_accuracy=best.validation_accuracy,
        validation_loss=best.validation_loss,
        best_epoch=best_epoch,
    )


def _improbable_labels(weights: bytes, settings: TrainingSettings, splits: Splits) -> "list[Improbable]":
    """Return the labels of training and validation that the network finds improbable."""
    from mnist_pipeline.ml.improbable import improbable_labels
    from mnist_pipeline.ml.model import choose_device, model_from_bytes

    network = model_from_bytes(weights, settings, splits.spec).to(choose_device(settings.device))
    return improbable_labels(network, splits.spec, (splits.train, splits.validation))


def _improbable_metadata(found: "list[Improbable]", splits: Splits) -> "dict[str, dg.RawMetadataValue]":
    from mnist_pipeline.ml.plots import improbable_grid

    spec, metadata = splits.spec, {"improbable_labels": len(found)}
    if not found:
        return {**metadata}
    kinds = Counter(label.kind for label in found).most_common(LISTED_KINDS)
    rows = [
        {"label": spec.class_names[given], "expected": spec.class_names[likeliest], "images": count}
        for (given, likeliest), count in kinds
    ]
    grid = improbable_grid((splits.train, splits.validation), found, spec, PICTURED_LABELS)
    return {
        **metadata,
        "improbable_kinds": table(rows),
        "improbable_images": picture(grid, "labels that are improbable", PICTURED_BYTES),
    }


def stored_candidate_is_sound(digit_classifier: ModelRecord, model_store: ModelStoreResource) -> dg.AssetCheckResult:
    """Read the version again: its weights, to train on from, and the file that is scored and served."""
    from mnist_pipeline.ml.errors import ModelError
    from mnist_pipeline.ml.model import model_from_bytes
    from mnist_pipeline.ml.predictor import Predictor
    from mnist_pipeline.stores.errors import ModelStoreError

    try:
        manifest, weights = model_store.load(digit_classifier.name)
        network = model_from_bytes(weights, manifest.network, manifest.task)
        manifest, onnx = model_store.load_onnx(digit_classifier.name)
        Predictor(manifest, onnx).verify()
    except (ModelStoreError, ModelError, OSError) as error:  # an error here would train again
        return dg.AssetCheckResult(passed=False, description=str(error))
    same = manifest.digests.same(digit_classifier.digests)
    return dg.AssetCheckResult(
        passed=same,
        description=None if same else "the store has another model by this name",
        metadata={
            "weights_bytes": len(weights),
            "onnx_bytes": len(onnx),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
        },
    )
