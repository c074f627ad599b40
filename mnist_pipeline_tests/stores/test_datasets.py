"""The images that versions were trained on, kept in the store of each kind."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from mnist_pipeline.ml.data import content_digest
from mnist_pipeline.ml.records import Splits
from mnist_pipeline.stores import CorruptModel, ModelStore, UnknownModel
from mnist_pipeline.stores import datasets as kept
from mnist_pipeline.stores.copying import copy
from mnist_pipeline.stores.datasets import INDEX, delete_unused, digests_of, keep_splits, kept_data, load_splits
from mnist_pipeline.stores.objects import DATA
from mnist_pipeline.task.dataset import LabelledImages

LATER = timedelta(days=2)


def same(a: Splits, b: Splits) -> bool:
    return all(content_digest(a.parts[name]) == content_digest(b.parts[name]) for name in {*a.parts, *b.parts})


@pytest.fixture
def with_held_out(splits: Splits) -> Splits:
    return splits._replace(held_out=LabelledImages(splits.test.images[:7], splits.test.labels[:7]))


def test_splits_come_back_as_they_were(store: ModelStore, splits, with_held_out, monkeypatch):
    monkeypatch.setattr(kept, "PART_BYTES", 100_000)  # several objects for each
    for one in (splits, with_held_out):
        records = keep_splits(store, one)
        back = load_splits(store, records, one.spec)
        assert same(back, one)
        assert back.train.images.dtype == back.train.labels.dtype == np.uint8
        assert {name: record.images for name, record in records.items()} == {
            name: len(part.labels) for name, part in one.parts.items()
        }
        assert all(sum(record.class_counts) == record.images for record in records.values())
        size = sum(len(store.read_object(key)[0]) for key in store.list_objects(DATA) if not key.endswith(INDEX))
        assert size == sum(record.bytes or 0 for record in records.values())


def test_equal_images_are_kept_once_and_pruned_with_the_last_version(store: ModelStore, save, splits, with_held_out):
    records, more = keep_splits(store, splits), keep_splits(store, with_held_out)
    assert len(kept_data(store)) == 4  # test, validation, train, and the held-out ones
    old = save()
    store.put(f"{old.name}/manifest.json", _with_splits(old, more))
    new = save()
    store.put(f"{new.name}/manifest.json", _with_splits(new, records))
    assert store.prune(keep=2).data == []
    pruned = store.prune(keep=1, orphans_older_than=timedelta(0))
    assert pruned.versions == [old.name]
    assert pruned.data == sorted(digests_of(more) - digests_of(records))
    assert same(load_splits(store, records, splits.spec), splits)
    with pytest.raises(UnknownModel, match="are not kept in"):
        load_splits(store, more, splits.spec)


def test_what_was_asked_for_of_late_stays(store: ModelStore, splits):
    records = keep_splits(store, splits)
    now = datetime.now(UTC)
    assert delete_unused(store, set, now - LATER) == []
    assert len(delete_unused(store, set, now + LATER)) == 3
    assert {key.split("/")[2] for keys in kept_data(store).values() for key in keys} == {INDEX}
    assert delete_unused(store, set, now + LATER) == []  # nothing is deleted twice
    with pytest.raises(UnknownModel):
        load_splits(store, records, splits.spec)
    keep_splits(store, splits)
    assert same(load_splits(store, records, splits.spec), splits)


def test_what_a_killed_writer_left_is_collected_after_a_while(store: ModelStore, splits):
    records = keep_splits(store, splits)
    left = f"{DATA}{records['train'].digest}/20200101T000000.000Z-killed/0"
    alone = f"{DATA}{'0' * 64}/20200101T000000.000Z-killed/0"
    at_work = f"{DATA}{'0' * 64}/99990101T000000.000Z-at-work/0"
    for key in (left, alone, at_work):
        store.put(key, b"x")
    assert delete_unused(store, lambda: digests_of(records), datetime.now(UTC) - LATER) == []
    assert {left, alone, at_work} & {*store.list_objects(DATA)} == {at_work}
    assert same(load_splits(store, records, splits.spec), splits)


def test_a_save_and_a_prune_at_the_same_moment_lose_nothing(store: ModelStore, splits, monkeypatch):
    records, later = keep_splits(store, splits), datetime.now(UTC) + LATER
    read = kept._found

    def prune_in_between(*arguments):
        found = read(*arguments)
        monkeypatch.setattr(kept, "_found", read)
        assert len(delete_unused(store, set, later)) == 3
        return found

    monkeypatch.setattr(kept, "_found", prune_in_between)
    keep_splits(store, splits)  # it has read the index, and then all is deleted
    assert same(load_splits(store, records, splits.spec), splits)

    def keep_in_between(*arguments):
        found = read(*arguments)
        monkeypatch.setattr(kept, "_found", read)
        keep_splits(store, splits)
        return found

    monkeypatch.setattr(kept, "_found", keep_in_between)
    assert len(delete_unused(store, set, later)) == 2  # all but the one that was asked for again
    monkeypatch.setattr(kept, "_found", read)
    keep_splits(store, splits)
    assert same(load_splits(store, records, splits.spec), splits)


def test_a_damaged_index_or_lost_images_are_kept_anew(store: ModelStore, splits):
    records = keep_splits(store, splits)
    folder = f"{DATA}{records['train'].digest}/"
    store.put(f"{folder}{INDEX}", b'{"shape": [1')
    keep_splits(store, splits)
    assert same(load_splits(store, records, splits.spec), splits)
    for key in [key for key in store.list_objects(folder) if key.endswith("/1")]:
        store.delete_object(key)
    keep_splits(store, splits)
    assert same(load_splits(store, records, splits.spec), splits)
    index = store.read_object(f"{folder}{INDEX}")[0].replace(b"[640,", b"[640000000000,")
    store.put(f"{folder}{INDEX}", index)
    with pytest.raises(CorruptModel, match="does not fit into 2 objects"):
        load_splits(store, records, splits.spec)


def test_images_that_are_needed_stay_also_with_a_damaged_index(store: ModelStore, splits):
    records = keep_splits(store, splits)
    index = f"{DATA}{records['train'].digest}/{INDEX}"
    content, _ = store.read_object(index)
    store.put(index, b"{}")
    assert delete_unused(store, lambda: digests_of(records), datetime.now(UTC) + LATER) == []
    store.put(index, content)
    assert same(load_splits(store, records, splits.spec), splits)


def test_nothing_is_deleted_where_a_manifest_cannot_be_read(store: ModelStore, save, splits):
    records = keep_splits(store, splits)
    old, _ = save(), save()
    store.put(f"{old.name}/manifest.json", b"{}")
    assert store.prune(keep=2, orphans_older_than=timedelta(0)).data == []
    assert same(load_splits(store, records, splits.spec), splits)


def test_changed_images_are_refused(store: ModelStore, splits):
    records = keep_splits(store, splits)
    [key] = [key for key in store.list_objects(f"{DATA}{records['test'].digest}/") if key.endswith("/0")]
    content = bytearray(store.read_object(key)[0])
    content[0] ^= 1
    store.put(key, bytes(content))
    with pytest.raises(CorruptModel, match="are not those that were kept"):
        load_splits(store, records, splits.spec)
    store.put(key, bytes(content) + b"more")
    with pytest.raises(CorruptModel, match="are damaged"):
        load_splits(store, records, splits.spec)


def test_a_version_from_before_says_so(store: ModelStore, splits):
    with pytest.raises(UnknownModel, match="were not kept: it was saved before splits were"):
        load_splits(store, {}, splits.spec)


def test_no_listing_of_versions_sees_them_and_a_copy_takes_them_along(store: ModelStore, save, splits, tmp_path):
    from mnist_pipeline.stores import LocalModelStore

    records = keep_splits(store, splits)
    inner = store.below("experiments/some")
    manifest = save()
    inner.put(f"{manifest.name}/manifest.json", b"{}")
    assert store.versions() == [manifest.name]
    assert list(store.version_files()) == [manifest.name]
    assert list(inner.list_objects()) == [f"{manifest.name}/manifest.json"]
    target = LocalModelStore(base_path=str(tmp_path / "copy"))
    copy(store, target)
    assert same(load_splits(target, records, splits.spec), splits)
    assert list(target.below("experiments/some").list_objects()) == [f"{manifest.name}/manifest.json"]


def _with_splits(manifest, records) -> bytes:
    training = manifest.training.model_copy(update={"splits": records})
    return manifest.model_copy(update={"training": training}).model_dump_json().encode()
