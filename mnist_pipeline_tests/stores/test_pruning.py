"""Prune deletes nothing that is or gets deployed, and collects what kills left."""

import json
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from mnist_pipeline.stores import LocalModelStore, UnknownModel
from mnist_pipeline.stores.exports import ONNX
from mnist_pipeline.stores.state import PRODUCTION
from mnist_pipeline.stores.versions import MANIFEST, WEIGHTS, VersionStore
from mnist_pipeline_tests.stores.test_trail import made

NOTHING = timedelta(0)


def test_a_promotion_between_the_look_and_the_deletion_is_told_and_nothing_deployed_is_deleted(
    store, save, monkeypatch
):
    old, *_, deployed = [save() for _ in range(4)]
    store.promote(made(store, deployed))
    decision, delete = made(store, old), VersionStore.delete_version

    def promote_first(self, name: str) -> None:
        monkeypatch.setattr(VersionStore, "delete_version", delete)
        with pytest.raises(UnknownModel, match="about to be deleted by prune"):
            self.promote(decision)
        delete(self, name)

    monkeypatch.setattr(VersionStore, "delete_version", promote_first)
    assert old.name in store.prune(keep=1).versions
    assert store.production().version == deployed.name
    store.verify(deployed.name)
    with pytest.raises(UnknownModel):
        store.promote(decision)


def test_a_promotion_before_the_announcement_is_seen_by_it(store, save, monkeypatch):
    old, *_, deployed = [save() for _ in range(4)]
    store.promote(made(store, deployed))
    decision, listed = made(store, old), VersionStore.version_files

    def promote_after(self):
        found = listed(self)
        monkeypatch.setattr(VersionStore, "version_files", listed)
        self.promote(decision)
        return found

    monkeypatch.setattr(VersionStore, "version_files", promote_after)
    assert old.name not in store.prune(keep=1).versions
    assert store.production().version == old.name
    store.verify(old.name)


def test_a_promotion_that_began_before_a_whole_prune_deploys_nothing_deleted(store, save, monkeypatch):
    old, *_, deployed = [save() for _ in range(4)]
    store.promote(made(store, deployed))
    state = store.state()  # what the gate has seen before it scores
    decision = made(store, old)
    store.prune(keep=1)
    with pytest.raises(UnknownModel):
        store.promote(decision, state)
    assert store.production().version == deployed.name


def test_what_a_killed_prune_announced_is_deleted_by_the_next(store, save, monkeypatch):
    old, *_, deployed = [save() for _ in range(4)]
    store.promote(made(store, deployed))

    def killed(self, name: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(VersionStore, "delete_version", killed)
        store.prune(keep=1)
    assert len(store.versions()) == 4
    with pytest.raises(UnknownModel, match="about to be deleted"):
        store.promote(made(store, old))
    assert len(store.prune(keep=99).versions) == 3
    assert store.versions() == [deployed.name]
    assert store.state().pruning == ()


def test_where_nothing_is_deployed_old_versions_are_pruned_too(store, save):
    manifests = [save() for _ in range(3)]
    store.record(made(store, manifests[0], "waiting"))
    assert store.prune(keep=1).versions == [manifests[1].name]
    assert store.approve(manifests[0].name, "fine", "kim").version == manifests[0].name


def test_saves_that_were_killed_are_collected_once_they_are_old(store, save):
    whole, killed = save(), save()
    store.delete_object(f"{killed.name}/{MANIFEST}")
    assert store.prune(keep=5).orphans == []
    assert store.prune(keep=5, orphans_older_than=NOTHING).orphans == [killed.name]
    assert {key.partition("/")[0] for key in store.list_objects()} <= {whole.name, "production.json"}
    with pytest.raises(ValueError, match="must not be negative"):
        store.prune(keep=5, orphans_older_than=timedelta(-1))


def test_nothing_but_versions_is_deleted_whatever_stands_in_the_state(store, save):
    store.promote(made(store, save()))
    store.put("decisions-of-another/precious", b"1")
    content = json.loads(store.read_object(PRODUCTION)[0]) | {"pruning": ["../outside", "decisions", "", "test_sets"]}
    store.replace_object(PRODUCTION, json.dumps(content).encode(), store.read_object(PRODUCTION)[1])
    with pytest.raises(UnknownModel, match="is not the name of a model version, and nothing is deleted"):
        store.prune(keep=5)
    assert len(store.decisions()) == 1


def test_an_age_beyond_all_time_collects_nothing(store, save):
    store.delete_object(f"{save().name}/{MANIFEST}")
    for days in (400_000, 2_000_000):
        assert store.prune(keep=5, orphans_older_than=timedelta(days=days)).orphans == []


def test_the_files_of_what_is_deployed_are_no_orphans(store, save):
    store.promote(made(store, manifest := save()))
    store.delete_object(f"{manifest.name}/{MANIFEST}")
    assert store.prune(keep=5, orphans_older_than=NOTHING).orphans == []
    assert store.read_object(f"{manifest.name}/{WEIGHTS}")


def test_proofs_of_killed_processes_are_collected(store, save):
    store.create_object(".proofs/20200101T000000-x", b"")
    store.create_object(".proofs/29990101T000000-x", b"")
    store.prune(keep=5)
    assert list(store.list_objects(".proofs/")) == [".proofs/29990101T000000-x"]


def test_unfinished_files_of_a_folder_are_collected_once_they_are_old(tmp_path, save_to):
    store = LocalModelStore(base_path=str(tmp_path / "models"))
    name = save_to(store).name
    old, new = Path(store.base_path, name, ".tmp-old"), Path(store.base_path, ".tmp-new")
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    assert store.prune(keep=5).orphans == [f"{name}/.tmp-old"]
    assert (old.exists(), new.exists()) == (False, True)
    killed = Path(store.base_path, "killed", ".tmp-x")
    killed.parent.mkdir()
    killed.write_bytes(b"half")
    store.prune(keep=5, orphans_older_than=NOTHING)
    assert not killed.parent.exists()
    assert sorted(path.name for path in Path(store.base_path, name).iterdir()) == [MANIFEST, ONNX, WEIGHTS]
