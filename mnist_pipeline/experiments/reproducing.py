"""A training once more, from what its version records, and what differs if the weights are not the same."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ValidationError

from mnist_pipeline.ml.data import data_version
from mnist_pipeline.ml.manifest import ModelManifest, Provenance
from mnist_pipeline.ml.provenance import differences, provenance
from mnist_pipeline.ml.records import EpochMetrics, Splits
from mnist_pipeline.ml.settings import TRAINING_CODE_VERSION, TrainingSettings
from mnist_pipeline.ml.training import train
from mnist_pipeline.stores.base import ModelStore
from mnist_pipeline.stores.datasets import load_splits
from mnist_pipeline.stores.errors import CorruptModel


class Reproduction(NamedTuple):
    """The result of a training once more."""

    expected: str
    """SHA-256 (hex) of the weights of the version."""
    found: str
    """SHA-256 (hex) of the weights now."""
    differing: dict[str, list[str]]
    """The differences in words, by commit, packages, hardware and data; also where the weights are the same."""
    provenance: Provenance

    @property
    def is_same(self) -> bool:
        """True if the weights are the same, bit by bit."""
        return self.expected == self.found


def reproduce(
    store: ModelStore,
    manifest: ModelManifest,
    on_epoch: Callable[[EpochMetrics], None] = lambda metrics: None,
    threads: int | None = None,
) -> Reproduction:
    """Train a version of `store` again: same settings, seed, images, precision, and as many threads, or `threads`.

    Raises UnknownModel if its images are not kept any more, CorruptModel if they or its settings cannot be read,
    ValueError if it cannot be trained here.
    """
    origin = manifest.training.provenance or Provenance()
    settings = _settings(manifest, origin)
    splits = load_splits(store, manifest.training.splits, manifest.task)
    begin_with = settings.initial_weights  # before the training, which would begin with another file without a word
    now_begun = hashlib.sha256(Path(begin_with).read_bytes()).hexdigest() if begin_with else None
    count, before = threads or origin.threads, torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        result = train(settings, splits, on_epoch)
        now = provenance(result.device, result.precision, sum(epoch.seconds for epoch in result.history), begin_with)
    finally:
        torch.set_num_threads(before)
    differing = differences(origin, now)
    if manifest.training.code_version != TRAINING_CODE_VERSION:
        said = f"training code {manifest.training.code_version} then, {TRAINING_CODE_VERSION} now"
        differing.setdefault("commit", []).append(said)
    if words := _data_differing(manifest, splits, now_begun):
        differing["data"] = words
    return Reproduction(manifest.weights_sha256, hashlib.sha256(result.weights).hexdigest(), differing, now)


def _settings(manifest: ModelManifest, origin: Provenance) -> TrainingSettings:
    """The settings of the version, with the device and the precision that they came to mean where it was trained."""
    meant = {"device": origin.device, "precision": origin.precision}
    try:
        settings = TrainingSettings.model_validate(manifest.training.settings)
        wanted = settings.model_dump() | {name: value for name, value in meant.items() if value}
        if origin.device == "cuda" and not torch.cuda.is_available():
            wanted["device"] = "auto"
        return TrainingSettings.model_validate(wanted)
    except ValidationError as error:
        raise CorruptModel(f"the settings of {manifest.name} are of other code than this: {error}") from error


def _data_differing(manifest: ModelManifest, splits: Splits, now_begun: str | None) -> list[str]:
    words, then = [], manifest.training.data_version
    if (now := data_version(splits.spec, *splits.parts.values())) != then:
        words.append(f"images {str(then)[:16]} then, {now[:16]} now")
    origin = manifest.training.provenance
    if origin and origin.initial_weights_sha256 != now_begun:
        words.append(f"initial_weights {str(origin.initial_weights_sha256)[:16]} then, {str(now_begun)[:16]} now")
    return words
