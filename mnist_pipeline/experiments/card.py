"""The card of a version: one page, kept beside it, with all that is recorded about it."""

from collections.abc import Iterator
from typing import Any

from scipy import stats

from mnist_pipeline.experiments.pages import inline, render
from mnist_pipeline.ml import plots
from mnist_pipeline.ml.evaluation import SplitScores
from mnist_pipeline.ml.manifest import Decision, ModelManifest, Provenance
from mnist_pipeline.ml.records import Evaluation
from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.evaluations import KeptEvaluation, kept_evaluation, kept_mistakes
from mnist_pipeline.stores.exports import recorded_digest
from mnist_pipeline.stores.versions import CARD

SHOWN_DECISIONS = 20


def keep_card(store: ModelStore, name: str) -> None:
    """Make the card of a version and keep it beside the version; again where something was recorded about it.

    Raises UnknownModel or CorruptModel."""
    store.put(f"{name}/{CARD}", card(store, name))


def card(store: ModelStore, name: str) -> bytes:
    """Return the card of a version, HTML with no other resources. Raises UnknownModel or CorruptModel."""
    manifest, kept = store.manifest(name), kept_evaluation(store, name)
    training = manifest.training
    decisions = [decision for decision, _ in zip(store.decisions_about(name), range(SHOWN_DECISIONS), strict=False)]
    history = training.epochs
    return render(
        "card.html",
        manifest=manifest,
        training=training,
        validation_accuracy=training.best("validation_accuracy"),
        validation_loss=training.best("validation_loss"),
        decisions=decisions,
        comparison_rows=comparison_rows,
        data_rows=[
            {"split": split, "images": record.images, "content digest": record.digest}
            for split, record in training.splits.items()
        ],
        class_rows=_class_rows(manifest),
        training_facts=_training_facts(manifest),
        curves=inline(plots.learning_curves(history, training.best_epoch or 0)) if history else None,
        settings=list(_settings(manifest)),
        origin=list(_origin(training.provenance or Provenance())),
        packages=training.provenance.packages if training.provenance else {},
        files=[
            ("SHA-256 of weights.safetensors", manifest.weights_sha256),
            ("SHA-256 of model.onnx", recorded_digest(store, manifest) or "not exported yet"),
        ],
        mistakes=inline(mistakes) if (mistakes := kept_mistakes(store, name)) else None,
        **_scores(manifest, kept),
    )


def comparison_rows(decision: Decision) -> list[dict[str, Any]]:
    """Return a row for each comparison that a decision names, on the test images and on slices."""
    return [
        {
            "beside": f"{one.role} {one.version}",
            "on": one.slice or "test images",
            "images": one.images,
            "its accuracy": one.test_accuracy,
            "fixed": one.fixed,
            "broken": one.broken,
            "regression": one.regression,
            "from": one.regression_low,
            "to": one.regression_high,
            "p: worse by chance": one.p_worse,
        }
        for one in (*decision.comparisons, *decision.slices)
    ]


def _scores(manifest: ModelManifest, kept: KeptEvaluation | None) -> dict[str, Any]:
    """The scores that the page shows, if it was evaluated."""
    if kept is None:
        return {"scores": None, "kept": None}
    scores, spec = kept.evaluation, manifest.task
    hits = round(scores.test.accuracy * scores.test.images)
    interval = stats.binomtest(hits, scores.test.images).proportion_ci(method="wilson")
    splits = {"validation": scores.validation, "test": scores.test}
    drawn = {
        name: SplitScores(splits[name], [], kept.curves[name], kept.reliability[name])
        for name in splits.keys() & kept.curves.keys()
    }
    names = spec.class_names
    return {
        "kept": kept,
        "scores": scores,
        "test_interval": (float(interval.low), float(interval.high)),
        "slices": inline(plots.slice_accuracies(scores)) if scores.slices else None,
        "slice_rows": _slice_rows(scores),
        "confusion": inline(plots.confusion(scores.test, spec)),
        "class_scores": [{"class": names[m.label], **m.model_dump()} for m in scores.test.per_class],
        "calibration": inline(plots.calibration_and_coverage(drawn, kept.target_error, kept.threshold)),
    }


def _slice_rows(scores: Evaluation) -> list[dict[str, Any]]:
    return [score.model_dump() for score in scores.slices]


def _class_rows(manifest: ModelManifest) -> list[dict[str, Any]]:
    splits = {name: record.class_counts for name, record in manifest.training.splits.items()}
    if not splits or any(len(counts) != manifest.task.classes for counts in splits.values()):
        return []
    return [
        {"class": name, **{split: counts[label] for split, counts in splits.items()}}
        for label, name in enumerate(manifest.task.class_names)
    ]


def _training_facts(manifest: ModelManifest) -> list[tuple[str, Any]]:
    training = manifest.training
    origin = training.provenance or Provenance()
    return [
        ("network", training.settings.get("network", manifest.network.network)),
        ("epochs", len(training.history)),
        ("chosen epoch", training.best_epoch),
        ("seconds", origin.seconds),
        ("peak memory (MiB)", origin.peak_memory_mib),
        ("seed", training.settings.get("seed")),
        ("code version", training.code_version),
        ("run", training.run_id),
    ]


def _settings(manifest: ModelManifest) -> Iterator[tuple[str, str, bool]]:
    """Name and value of each setting, and if it is the default of now."""
    defaults = TrainingSettings().model_dump()
    for name, value in manifest.training.settings.items():
        yield name, str(value), name in defaults and defaults[name] == value


def _origin(origin: Provenance) -> Iterator[tuple[str, Any]]:
    changed = {True: ", with uncommitted changes", False: "", None: ""}[origin.uncommitted_changes]
    yield "git commit", f"{origin.git_commit}{changed}" if origin.git_commit else None
    yield "Python", origin.python
    yield "processor", origin.processor
    yield "instructions", origin.instructions
    yield "cores", origin.cores
    yield "threads", origin.threads
    yield "device", origin.device
    yield "precision", origin.precision
    yield "GPU", origin.gpu or "none"
    yield "memory (GiB)", origin.memory_gib
