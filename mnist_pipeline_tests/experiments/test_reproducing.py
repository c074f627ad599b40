"""A version trained again: the same weights, or what differs."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_pipeline.__main__ import main
from mnist_pipeline.experiments.reproducing import reproduce
from mnist_pipeline.ml import provenance as origins
from mnist_pipeline.ml.export import export
from mnist_pipeline.ml.manifest import ModelManifest, Provenance
from mnist_pipeline.ml.provenance import differences, packages, provenance
from mnist_pipeline.ml.records import EpochMetrics
from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.ml.training import train
from mnist_pipeline.stores import CorruptModel, LocalModelStore, UnknownModel
from mnist_pipeline.stores.candidates import save_trained
from mnist_pipeline.stores.datasets import keep_splits
from mnist_pipeline_tests.task.examples import TINY


@pytest.fixture
def store(tmp_path: Path) -> LocalModelStore:
    return LocalModelStore(base_path=str(tmp_path / "storage/models"))


def trained_as(store: LocalModelStore, splits, **fields: Any) -> ModelManifest:
    settings = TrainingSettings(**TINY | {"epochs": 1} | fields)
    result = train(settings, splits)
    return save_trained(
        store, result, export(result.weights, settings, splits), settings, splits, keep_splits(store, splits), "run"
    )


def changed(store: LocalModelStore, manifest: ModelManifest, **fields: Any) -> ModelManifest:
    """The version, as if it had been trained in other circumstances."""
    assert manifest.training.provenance
    origin = manifest.training.provenance.model_copy(update=fields)
    training = manifest.training.model_copy(update={"provenance": origin})
    new = manifest.model_copy(update={"training": training})
    store.put(f"{manifest.name}/manifest.json", new.model_dump_json().encode())
    return new


@pytest.mark.parametrize(
    "fields",
    [{}, {"seed": 3}, {"optimizer": "sgd", "momentum": 0.5}, {"class_weights": "balanced"}, {"precision": "bfloat16"}],
    ids=str,
)
def test_five_versions_come_out_the_same(store, splits, fields):
    manifest = trained_as(store, splits, **fields)
    seen: list[EpochMetrics] = []
    found = reproduce(store, store.manifest(manifest.name), seen.append)
    assert found.is_same
    assert found.expected == manifest.weights_sha256
    assert set(found.differing) <= {"commit"}  # of a working tree with changes nobody knows which
    assert [metrics.epoch for metrics in seen] == [1]


def test_the_record_tells_where_a_version_comes_from(store, splits):
    manifest = trained_as(store, splits)
    origin = manifest.training.provenance
    assert origin
    assert origin.threads == torch.get_num_threads()
    assert (origin.device, origin.precision) == ("cpu", "float32")
    assert torch.__version__.startswith(origin.packages["torch"].partition("+")[0])
    assert origin.packages == packages()
    assert origin.peak_memory_mib and origin.peak_memory_mib > 100
    assert origin.seconds == pytest.approx(sum(epoch["seconds"] for epoch in manifest.training.history))
    counts = {name: (record.images, sum(record.class_counts)) for name, record in manifest.training.splits.items()}
    assert counts == {name: (len(part.labels),) * 2 for name, part in splits.parts.items()}


def test_another_thread_count_is_named_and_another_package_and_another_machine(store, splits):
    manifest = trained_as(store, splits)
    threads = torch.get_num_threads()
    assert reproduce(store, manifest, threads=threads + 1).differing["hardware"] == [
        f"threads {threads} then, {threads + 1} now"
    ]
    assert torch.get_num_threads() == threads
    installed = packages()
    other = changed(
        store,
        manifest,
        packages={**installed, "torch": "1.0", "gone": "2.0"},
        processor="Z80",
        git_commit="0" * 40,
        uncommitted_changes=False,
    )
    found = reproduce(store, other)
    assert found.is_same  # and yet it is said
    assert found.differing["packages"] == [
        "gone 2.0 then, not installed now",
        f"torch 1.0 then, {installed['torch']} now",
    ]
    assert found.differing["hardware"] == [f"processor Z80 then, {found.provenance.processor} now"]
    assert found.differing["commit"][0].startswith(f"git commit {'0' * 40} then, ")


def test_weights_that_differ_are_told_from_those_that_do_not(store, splits):
    manifest = trained_as(store, splits)
    other = manifest.model_copy(update={"weights_sha256": "0" * 64})
    found = reproduce(store, other)
    assert not found.is_same
    assert found.found == manifest.weights_sha256


def test_other_initial_weights_are_other_data(store, splits, tmp_path):
    first = trained_as(store, splits)
    file = tmp_path / "begin.safetensors"
    file.write_bytes(store.load(first.name)[1])
    manifest = trained_as(store, splits, initial_weights=str(file))
    assert reproduce(store, manifest).is_same
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    other = trained_as(store, splits, seed=5)
    file.write_bytes(store.load(other.name)[1])
    found = reproduce(store, manifest)
    assert not found.is_same
    [words] = found.differing["data"]
    assert words.startswith(f"initial_weights {digest[:16]} then, ")
    file.unlink()
    with pytest.raises(FileNotFoundError):
        reproduce(store, manifest)


def test_what_cannot_be_reproduced_says_why(store, splits):
    manifest = trained_as(store, splits)
    before = manifest.model_copy(update={"training": manifest.training.model_copy(update={"splits": {}})})
    with pytest.raises(UnknownModel, match="were not kept: it was saved before splits were"):
        reproduce(store, before)
    unknown = {**manifest.training.settings, "epochs": 0}
    training = manifest.training.model_copy(update={"settings": unknown})
    with pytest.raises(CorruptModel, match="are of other code than this"):
        reproduce(store, manifest.model_copy(update={"training": training}))
    for key in list(store.list_objects("data/")):
        store.delete_object(key)
    with pytest.raises(UnknownModel, match="are not kept in"):
        reproduce(store, manifest)


def test_the_command_says_the_same_or_what_differs(store, splits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STORAGE_ROOT", str(tmp_path / "storage"))
    manifest = trained_as(store, splits)
    assert main(["reproduce", manifest.name[:30]]) == 0
    said = capsys.readouterr().out
    assert f"then: {manifest.weights_sha256}\nnow:  {manifest.weights_sha256}\nthe weights are the same" in said
    assert "on 1,000 images that were kept" in said
    changed(store, manifest.model_copy(update={"weights_sha256": "0" * 64}), processor="Z80")
    assert main(["reproduce", manifest.name]) == 1
    assert "the weights differ\n" in (said := capsys.readouterr().out)
    assert "hardware: processor Z80 then" in said
    assert main(["reproduce", "none"]) == 1
    assert "there is no model version 'none'" in capsys.readouterr().err


def test_what_was_not_recorded_counts_as_different():
    now = provenance("cpu", "float32", 1.0)
    found = differences(Provenance(), now)
    assert f"threads None then, {now.threads} now" in found["hardware"]
    assert any(words.startswith("torch not installed then, ") for words in found["packages"])
    assert differences(now, now.model_copy(update={"uncommitted_changes": False, "seconds": 9.0})) in (
        {},
        {"commit": [f"uncommitted changes {now.uncommitted_changes} then, False now"]},
    )


def test_a_folder_that_is_no_checkout_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(origins, "PROJECT", tmp_path)
    assert origins._git() == (None, None)
    (tmp_path / ".git").mkdir()  # and a broken one neither
    assert origins._git() == (None, None)
