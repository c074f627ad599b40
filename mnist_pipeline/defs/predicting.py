"""The beginning of all predictions: the deployed model, and the files that a user names."""

import hashlib
from typing import TYPE_CHECKING

import dagster as dg
from upath import UPath

from mnist_pipeline.defs.resources.folders import PredictionInputResource, PredictionsResource
from mnist_pipeline.files.storage import exists, storage_path
from mnist_pipeline.ml.records import Splits
from mnist_pipeline.ml.settings import BatchPredictionSettings
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.errors import CorruptModel, UnknownModel
from mnist_pipeline.task.spec import TaskSpec

if TYPE_CHECKING:
    from mnist_pipeline.ml.inference import BatchResult
    from mnist_pipeline.ml.inputs import BatchSource, Share
    from mnist_pipeline.ml.predictor import Predictor
    from mnist_pipeline.ml.review_items import Doubtful

BATCH_CODE_VERSION = "2"
"""Raise it when the same inputs and model would give another table of predictions."""

TEST_IMAGES = "test images"
"""The source of predictions where a run names none."""


def deployed_predictor(store: ModelStore, spec: TaskSpec, threads: int = 0) -> "Predictor":
    """Return the predictor of what is deployed, which must be for the images of `spec`; 0 threads: as many as cores.

    Raises Failure, not to be tried again, where nothing is or what is cannot be used; a store out of reach may be.
    """
    from mnist_pipeline.ml.errors import ModelError, NoDeployedModel
    from mnist_pipeline.ml.predictor import Predictor

    try:
        predictor = Predictor.from_store(store, threads=threads)
        predictor.require_images_of(spec)
    except (NoDeployedModel, UnknownModel, CorruptModel, ModelError) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    return predictor


def existing_paths(setting: str, names: list[str], endpoint_url: str | None = None) -> list[UPath]:
    """Return the paths of folders, files or addresses; `~` is the home folder.

    Raises Failure with the `setting` and those that do not exist or are no addresses.
    """
    try:
        paths = [storage_path(name, endpoint_url) for name in names]
    except ValueError as error:
        raise dg.Failure(f"{setting}: {error}", allow_retries=False) from error
    if missing := [str(path) for path in paths if not exists(path)]:
        raise dg.Failure(f"{setting} that do not exist: {', '.join(missing)}", allow_retries=False)
    return paths


def input_folder(resource: PredictionInputResource) -> list[UPath]:
    """Return the folder PREDICTION_INPUT, or nothing where none is set. Raises Failure if it does not exist."""
    try:
        folder = resource.path()
    except FileNotFoundError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    return [folder] if folder else []


def batch_source(
    settings: BatchPredictionSettings, splits: Splits, prediction_input: PredictionInputResource
) -> "BatchSource":
    """Return what is to be predicted: the inputs of the configuration, else of the folder, else the test images."""
    from mnist_pipeline.ml.inputs import BatchSource

    paths = existing_paths("input_paths", settings.input_paths, prediction_input.endpoint_url)
    paths = paths or input_folder(prediction_input)
    held = None if paths else splits.test
    return BatchSource(paths, prediction_input.links, held, TEST_IMAGES, splits.spec, settings.batch_size)


def predict_share(
    predictor: "Predictor",
    source: "BatchSource",
    predictions: PredictionsResource,
    share: "Share",
    settings: BatchPredictionSettings,
    doubtful: "Doubtful",
) -> "BatchResult":
    """Predict one part into the data set of all, unless that was done before."""
    from mnist_pipeline.ml.parts import predict_part

    table, errors, _ = predictions.table_paths(parts_name(predictor, source, share.parts, settings))
    return predict_part(predictor, source, share, table, errors, doubtful)


def parts_name(predictor: "Predictor", source: "BatchSource", parts: int, settings: BatchPredictionSettings) -> str:
    """Return the name of the data set: parts agree on it without reading all inputs.

    Inputs of other names, sizes or times, other settings (which divide batches) and other code have another one, so
    that no two sets of parts are mixed; each part knows the content of its share.
    """
    told = f"{source.fingerprint()} {settings.model_dump_json(exclude={'input_paths'})} {BATCH_CODE_VERSION}"
    return f"{predictor.version}_{hashlib.sha256(told.encode()).hexdigest()[:16]}_in_{parts}"
