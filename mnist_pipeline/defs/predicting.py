"""The beginning of all predictions: the deployed model, and the files that a user names."""

from typing import TYPE_CHECKING

import dagster as dg
from upath import UPath

from mnist_pipeline.defs.resources.folders import PredictionInputResource
from mnist_pipeline.files.storage import exists, storage_path
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.errors import CorruptModel, UnknownModel
from mnist_pipeline.task.spec import TaskSpec

if TYPE_CHECKING:
    from mnist_pipeline.ml.predictor import Predictor

TEST_IMAGES = "test images"
"""The source of predictions where a run names none."""


def deployed_predictor(store: ModelStore, spec: TaskSpec) -> "Predictor":
    """Return the predictor of what is deployed, which must be for the images of `spec`.

    Raises Failure, not to be tried again, where nothing is or what is cannot be used; a store out of reach may be.
    """
    from mnist_pipeline.ml.errors import ModelError, NoDeployedModel
    from mnist_pipeline.ml.predictor import Predictor

    try:
        predictor = Predictor.from_store(store)
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
