"""A store is copied to another address: whole, verified, and from where it left off."""

from pathlib import Path
from typing import Any

import pytest

from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.stores import CorruptModel, LocalModelStore, MemoryModelStore, ModelStore, ModelStoreError, copying
from mnist_pipeline.stores.copying import copy
from mnist_pipeline.stores.versions import MANIFEST, WEIGHTS
from mnist_pipeline_tests.stores.conftest import KINDS, make_store
from mnist_pipeline_tests.stores.test_trail import made


@pytest.fixture
def source(tmp_path, save_to) -> ModelStore:
    """A store with some history."""
    store = LocalModelStore(base_path=str(tmp_path / "source"))
    first, second, third = (save_to(store) for _ in range(3))
    store.put(f"{first.name}/predicted-x.labels", b"labels")
    store.promote(made(store, first))
    store.promote(made(store, second))
    store.record(made(store, third, "refused"))
    store.rollback("customers complain", "kim")
    store.record(made(store, third, "waiting"))
    return store


def same(one: ModelStore, other: ModelStore) -> bool:
    return all(one.read_object(key)[0] == other.read_object(key)[0] for key in one.list_objects()) and list(
        one.list_objects()
    ) == list(other.list_objects())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "memory"])
def test_a_store_is_copied_whole(source, kind, request):
    target = make_store(kind, request)
    told: list[str] = []
    done = copy(source, target, told.append)
    assert done.versions == told == list(reversed(source.versions()))
    assert (done.decisions, done.present, done.damaged) == (5, [], {})
    assert same(source, target)
    assert target.state().waiting == source.state().waiting
    Predictor.from_store(target).verify()
    again = copy(source, target)
    assert (again.versions, again.decisions, len(again.present)) == ([], 0, 3)
    back = copy(target, LocalModelStore(base_path=f"{source.address}-back"))
    assert len(back.versions) == 3


def test_a_copy_that_was_cut_off_goes_on(source, monkeypatch):
    target, load = MemoryModelStore(bucket="cut-off"), type(source).load

    def cut_off(self, name: str):
        if name == source.versions()[0]:
            raise KeyboardInterrupt
        return load(self, name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(source), "load", cut_off)
        copy(source, target)
    assert target.production() is None  # what is deployed comes last
    done = copy(source, target)
    assert (len(done.versions), len(done.present)) == (1, 2)
    assert same(source, target)


def test_what_happens_meanwhile_is_copied_too(source, save_to):
    target = MemoryModelStore(bucket="meanwhile")
    later: list[Any] = []

    def deploy(name: str) -> None:
        if not later:
            later.append(save_to(source))
            source.promote(made(source, later[0]))

    copy(source, target, deploy)
    assert target.decisions()[0] == source.production()
    assert same(source, target)


def test_a_damaged_version_is_left_out_and_named(source):
    target, damaged = MemoryModelStore(bucket="damaged"), source.versions()[0]
    key = f"{damaged}/{WEIGHTS}"
    source.replace_object(key, b"other", source.read_object(key)[1])
    done = copy(source, target)
    assert "SHA-256" in done.damaged[damaged]
    assert target.versions() == source.versions()[1:]
    deployed = f"{source.production().version}/{MANIFEST}"
    source.replace_object(deployed, b"{", source.read_object(deployed)[1])
    with pytest.raises(CorruptModel, match="nothing is deployed at the target"):
        copy(source, MemoryModelStore(bucket="damaged-deployed"))


def test_a_deployment_that_is_not_there_is_not_copied(source):
    target = MemoryModelStore(bucket="missing")
    source.delete_version(source.production().version)
    with pytest.raises(CorruptModel, match=r"nothing is deployed at the target: .* is not in"):
        copy(source, target)
    assert target.production() is None


def test_what_is_pruned_at_the_source_meanwhile_is_left_out(source, monkeypatch):
    target, load, oldest = MemoryModelStore(bucket="pruned"), LocalModelStore.load, source.versions()[0]

    def prune_after(self, name: str):
        found = load(self, name)
        if name == oldest:
            self.delete_version(name)
        return found

    monkeypatch.setattr(LocalModelStore, "load", prune_after)
    copy(source, target)
    assert target.versions() == source.versions()
    assert not list(target.list_objects(f"{oldest}/"))


def test_content_of_its_own_is_not_written_over(source, save_to, monkeypatch):
    target = MemoryModelStore(bucket="its-own")
    target.promote(made(target, save_to(target)))
    with pytest.raises(ModelStoreError, match=r"has 1 decisions of its own, such as .*: copy to an empty address"):
        copy(source, target)
    with pytest.raises(ModelStoreError, match="is, holds or lies in the store"):
        copy(source, LocalModelStore(base_path=source.address))
    for inside in (f"{source.address}/backup", str(Path(source.address).parent)):
        with pytest.raises(ModelStoreError, match="is, holds or lies in the store"):
            copy(source, LocalModelStore(base_path=inside))
    with pytest.raises(ModelStoreError, match="there is nothing to copy in memory://empty"):
        copy(MemoryModelStore(bucket="empty"), MemoryModelStore(bucket="empty-too"))
    copied = MemoryModelStore(bucket="copied-and-used")
    copy(source, copied)
    copied.record(made(copied, save_to(copied), "waiting"))
    with pytest.raises(ModelStoreError, match="decisions of its own"):
        copy(source, copied)
    assert copied.waiting()
    other = MemoryModelStore(bucket="another-manifest")
    other.create_object(f"{source.versions()[0]}/{MANIFEST}", b"{}")
    with pytest.raises(ModelStoreError, match=r"has another .*/manifest\.json: copy to an empty address"):
        copy(source, other)


def test_a_deployment_at_the_target_during_the_copy_is_not_written_over(source, monkeypatch):
    target = MemoryModelStore(bucket="during")
    copy(source, target)
    rest = copying._copy_decisions

    def deploy_there(*arguments) -> None:
        rest(*arguments)
        target.rollback("here, too", "me", to=source.versions()[1])

    source.rollback("forward", "me", to=source.versions()[0])
    monkeypatch.setattr(copying, "_copy_decisions", deploy_there)
    with pytest.raises(ModelStoreError, match="was changed while it was copied to"):
        copy(source, target)
    assert getattr(target.production(), "reason", None) == "here, too"
