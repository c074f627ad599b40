"""One trial: its training, as a version in the folder of its sweep, and its result in the sweep's record."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError
from upath import UPath

from mnist_pipeline.experiments.sweep import first_problem
from mnist_pipeline.experiments.trials import Chosen, Sweeps, Trial
from mnist_pipeline.ml.errors import ModelError
from mnist_pipeline.ml.export import export
from mnist_pipeline.ml.manifest import ModelManifest, SplitRecord
from mnist_pipeline.ml.records import EpochMetrics, Splits
from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.ml.training import TrainingDiverged, discard_checkpoint, train
from mnist_pipeline.stores.candidates import save_trained
from mnist_pipeline.stores.datasets import digests_of, keep_splits, load_splits
from mnist_pipeline.stores.errors import CorruptModel, UnknownModel
from mnist_pipeline.stores.versions import WEIGHTS


def run_trial(
    sweeps: Sweeps,
    name: str,
    current: Splits,
    checkpoint_dir: Path | UPath,
    reporter: Callable[[int], Callable[[EpochMetrics], None]],
    run_id: str,
) -> Trial:
    """Train a trial and record what it came to; one that has a version already is not trained again.

    A killed one continues after its last whole epoch. It is trained on the splits that its sweep began with, also
    where `current` are others by now. A loss that diverges, and settings that cannot be trained, are a result.
    `reporter` is given the number of epochs, and returns what is called after each.
    Raises UnknownModel for what is no trial, or if those splits are gone.
    """
    chosen = sweeps.chosen(name)
    sweep, trial = chosen.record.sweep, chosen.trial
    if trial.version is not None:
        return trial
    models = sweeps.models(sweep.name)
    try:
        settings = sweep.training_settings(trial.values, trial.seed)
    except ValidationError as error:
        return _recorded(sweeps, name, trial.model_copy(update={"problem": first_problem(error)}))
    if saved := _saved_before(sweeps, chosen, name, settings):
        weights = models.read_object(f"{saved.name}/{WEIGHTS}")[0]
        return _recorded(sweeps, name, _result(trial, saved, len(weights)))
    splits, kept = _splits_of(sweeps, sweep.name, current)
    try:
        result = train(settings, splits, reporter(settings.epochs), checkpoint_dir)
        exported = export(result.weights, settings, splits)
    except (TrainingDiverged, ModelError, ValueError) as error:
        return _recorded(sweeps, name, trial.model_copy(update={"problem": str(error)}))
    manifest = save_trained(models, result, exported, settings, splits, kept, run_id, trial=name)
    try:
        done = _recorded(sweeps, name, _result(trial, manifest, len(result.weights)))
    except UnknownModel:  # its sweep was deleted meanwhile, and nothing else would ever delete it
        models.delete_version(manifest.name)
        raise
    with suppress(OSError):  # it is saved: trying again would gain nothing, and the checkpoint is of no more use
        discard_checkpoint(settings, splits, checkpoint_dir)
    return done


def _splits_of(sweeps: Sweeps, sweep: str, current: Splits) -> tuple[Splits, dict[str, SplitRecord]]:
    """The splits of a sweep, and how they are kept: results on other validation images could not be compared."""
    now = keep_splits(sweeps.store, current)
    then = sweeps.splits(sweep, now)
    if digests_of(then) == digests_of(now):
        return current, now
    return load_splits(sweeps.store, then, current.spec), then


def _saved_before(sweeps: Sweeps, chosen: Chosen, name: str, settings: TrainingSettings) -> ModelManifest | None:
    """The version of a trial that was killed after it had saved it, and before it had recorded it.

    Not one of a deleted sweep of the same name, which a run that was at work then may have left.
    """
    models = sweeps.models(chosen.record.sweep.name)
    recorded = {trial.version for trial in chosen.record.trials}
    for version in models.versions():
        with suppress(CorruptModel, UnknownModel):
            if version in recorded:
                continue
            training = (manifest := models.manifest(version)).training
            since = training.created_at and training.created_at >= chosen.record.started_at
            if training.trial == name and since and training.settings == settings.model_dump():
                return manifest
    return None


def _result(trial: Trial, manifest: ModelManifest, weights_bytes: int) -> Trial:
    training = manifest.training
    return trial.model_copy(
        update={
            "version": manifest.name,
            "problem": None,
            "validation_accuracy": training.best("validation_accuracy"),
            "validation_loss": training.best("validation_loss"),
            "epochs": len(training.history),
            "seconds": training.provenance.seconds if training.provenance else None,
            "weights_bytes": weights_bytes,
        }
    )


def _recorded(sweeps: Sweeps, name: str, result: Trial) -> Trial:
    record = sweeps.record(name, result)
    return next(trial for trial in record.trials if trial.key == result.key)
