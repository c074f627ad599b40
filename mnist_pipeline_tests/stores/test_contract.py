"""What every model store must do, run against each backend."""

import hashlib
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mnist_pipeline.ml.manifest import Decision, ModelManifest
from mnist_pipeline.ml.model import ModelError, model_from_bytes
from mnist_pipeline.ml.records import Digests
from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.stores import (
    CorruptModel,
    ModelStore,
    ModelStoreError,
    NothingDeployed,
    PromotionConflict,
    UnknownModel,
)
from mnist_pipeline.stores.decisions import new_decision
from mnist_pipeline.stores.errors import ObjectChanged, ObjectMissing
from mnist_pipeline.stores.exports import ONNX
from mnist_pipeline.stores.overview import overview
from mnist_pipeline.stores.state import PRODUCTION
from mnist_pipeline.stores.trail import entry_name
from mnist_pipeline.stores.versions import MANIFEST, WEIGHTS
from mnist_pipeline_tests.amounts import RACES
from mnist_pipeline_tests.task.examples import TINY

SETTINGS = TrainingSettings(**TINY)


def decision(store: ModelStore, manifest: ModelManifest, outcome: str = "promoted") -> Decision:
    return new_decision(
        outcome=outcome,
        strategy="quality",
        reason="good",
        version=manifest.name,
        weights_sha256=manifest.weights_sha256,
        onnx_sha256=manifest.onnx_sha256,
        incumbent=store.production(),
        actor="test",
    )


def overwrite(store: ModelStore, key: str, data: bytes) -> None:
    store.replace_object(key, data, store.read_object(key)[1])


def test_saved_is_what_is_loaded(store, save, trained):
    saved = save()
    manifest, weights = store.load(saved.name)
    assert manifest == saved
    assert weights == trained.weights
    assert manifest.weights_sha256 == hashlib.sha256(weights).hexdigest()
    assert manifest.training.best("validation_accuracy") == trained.history[trained.best_epoch - 1].validation_accuracy


def test_the_name_tells_network_and_recipe(save, trained):
    accuracy = trained.history[trained.best_epoch - 1].validation_accuracy
    name = save().name
    assert name.startswith(f"mnist_{SETTINGS.FAMILY}_2")
    assert name.endswith(f"Z_{SETTINGS.network_label}_bs16_adamw_lr1e-2_s0_acc{accuracy:.4f}")


def test_versions_are_listed_newest_first_and_do_not_collide(store, save):
    assert store.versions() == []
    with ThreadPoolExecutor(8) as threads:
        names = {manifest.name for manifest in threads.map(lambda _: save(), range(24))}
    assert len(names) == 24
    latest = save().name
    assert store.versions() == sorted({*names, latest}, reverse=True)
    assert store.versions()[0] == latest


def test_more_versions_than_a_page_of_s3_holds(store):
    for number in range(1050):
        store.create_object(f"of_other_code_20260101T000000.{number % 1000:03d}Z_{number}/{MANIFEST}", b"{}")
    assert len(store.versions()) == 1050


def test_an_unfinished_save_is_no_version(store, save, trained):
    name = save().name
    store.delete_object(f"{name}/{MANIFEST}")
    assert store.versions() == []
    with pytest.raises(UnknownModel, match=name):
        store.load(name)


@pytest.mark.parametrize("name", ["", "..", "../../etc/passwd", "none_x", "production.json", "/etc/passwd"])
def test_a_name_that_is_none_is_refused(store, name):
    with pytest.raises(UnknownModel):
        store.load(name)


def test_an_unknown_version_names_those_there_are(store, save):
    name = save().name
    with pytest.raises(UnknownModel, match=name):
        store.manifest("none_20200101T000000.000Z_none")


LOADS = {WEIGHTS: "load", ONNX: "load_onnx"}


@pytest.mark.parametrize("file", LOADS)
def test_a_swapped_byte_is_noticed(store, save, file):
    name = save().name
    damaged = bytearray(store.read_object(f"{name}/{file}")[0])
    damaged[len(damaged) // 2] ^= 1
    overwrite(store, f"{name}/{file}", bytes(damaged))
    for load in (getattr(store, LOADS[file]), store.verify):
        with pytest.raises(CorruptModel, match=f"{file} of {name} has SHA-256"):
            load(name)


@pytest.mark.parametrize("file", LOADS)
def test_a_manifest_without_its_files_is_refused(store, save, file):
    name = save().name
    store.delete_object(f"{name}/{file}")
    for load in (getattr(store, LOADS[file]), store.verify):
        with pytest.raises(CorruptModel, match=f"has a manifest but no {file}"):
            load(name)


def test_a_damaged_manifest_is_refused(store, save):
    name = save().name
    overwrite(store, f"{name}/{MANIFEST}", b'{"name": ')
    with pytest.raises(CorruptModel, match="damaged"):
        store.manifest(name)


def test_a_manifest_of_another_version_is_refused(store, save):
    one, other = save(), save()
    overwrite(store, f"{one.name}/{MANIFEST}", other.model_dump_json().encode())
    with pytest.raises(CorruptModel, match="says that it is"):
        store.load(one.name)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_by_the_name_of_weights_is_refused_and_not_executed(store, save, tmp_path):
    mark = tmp_path / "executed"
    manifest, weights = store.load(save(pickle.dumps(Bomb(mark))).name)
    with pytest.raises(ModelError, match="not a safetensors file"):
        model_from_bytes(weights, manifest.network, manifest.task)
    assert not mark.exists()


def test_nothing_is_deployed_at_first(store, save):
    save()
    assert store.production() is None
    assert store.decisions() == []


def test_promotion_and_audit_trail(store, save):
    first, second = save(), save()
    promoted = decision(store, first)
    store.promote(promoted)
    refused = decision(store, second, "refused")
    store.record(refused)
    assert store.production() == promoted
    assert store.decisions() == [refused, promoted]
    assert refused.incumbent_version == first.name


def test_a_damaged_version_is_not_deployed(store, save, trained):
    first, second = save(), save()
    store.promote(decision(store, first))
    overwrite(store, f"{second.name}/{ONNX}", b"another")
    with pytest.raises(CorruptModel):
        store.promote(decision(store, second))
    assert store.production().version == first.name
    assert len(store.decisions()) == 1


@pytest.mark.parametrize("change", [{"weights_sha256": "0" * 64}, {"onnx_sha256": "0" * 64}])
def test_files_that_were_not_decided_about_are_not_deployed(store, save, change):
    manifest = save()
    other = decision(store, manifest).model_copy(update=change)
    with pytest.raises(CorruptModel, match="decided about"):
        store.promote(other)


def test_two_deployers_do_not_overwrite_each_other(store, save):
    first, second = save(), save()
    stale = decision(store, second)
    store.promote(decision(store, first))
    with pytest.raises(PromotionConflict, match=first.name):
        store.promote(stale)
    assert store.production().version == first.name


@pytest.mark.long
@pytest.mark.parametrize("deployed_before", [False, True])
def test_of_many_deployers_at_once_one_wins(store, save, deployed_before):
    if deployed_before:
        store.promote(decision(store, save()))

    def promote(rival: Decision) -> bool:
        try:
            store.promote(rival)
        except PromotionConflict:
            return False
        return True

    for races in range(1, RACES + 1):
        rivals = [decision(store, save()) for _ in range(8)]
        with ThreadPoolExecutor(8) as threads:
            won = list(threads.map(promote, rivals))
        assert won.count(True) == 1
        assert store.production() == rivals[won.index(True)]
        assert len(store.decisions()) == races + deployed_before


def test_a_decision_lost_by_a_kill_between_two_writes_comes_back(store, save):
    promoted = decision(store, save())
    store.promote(promoted)
    store.delete_object(f"decisions/{entry_name(promoted)}.json")
    assert store.decisions() == [promoted]
    store.delete_object(f"decisions/{entry_name(promoted)}.json")
    next_one = decision(store, save())
    store.promote(next_one)
    assert store.decisions() == [next_one, promoted]


def test_a_retry_after_a_lost_answer_is_no_conflict(store, save, monkeypatch):
    manifest = save()
    create = type(store).create_object

    def answer_lost(self, key: str, data: bytes) -> None:
        create(self, key, data)
        create(self, key, data)  # what a client's automatic retry does

    monkeypatch.setattr(type(store), "create_object", answer_lost)
    promoted = decision(store, manifest)
    store.promote(promoted)
    assert store.production() == promoted


def test_rollback(store, save):
    first, second = save(), save()
    with pytest.raises(NothingDeployed):
        store.rollback("why", "me")
    store.promote(decision(store, first))
    with pytest.raises(ModelStoreError, match="nothing was deployed before"):
        store.rollback("why", "me")
    store.promote(decision(store, second))
    with pytest.raises(ModelStoreError, match="reason"):
        store.rollback(" ", "me")
    with pytest.raises(ModelStoreError, match="deployed already"):
        store.rollback("why", "me", to=second.name)
    back = store.rollback("customers complain", "me")
    assert (back.version, back.incumbent_version, back.strategy) == (first.name, second.name, "rollback")
    assert store.production() == back == store.decisions()[0]
    with pytest.raises(ModelStoreError, match="itself reached by a rollback"):
        store.rollback("again", "me")
    assert store.rollback("forward again", "me", to=second.name).version == second.name


def test_a_rollback_is_about_both_files(store, save):
    """Equal weights with another temperature are another model, unless only the weights were recorded."""
    good, bad = save(), save(onnx=b"of one temperature")
    for manifest in (good, bad):
        store.promote(decision(store, manifest))
    back = store.rollback("a test", "kim")
    assert (back.weights_sha256, back.onnx_sha256) == good.digests
    assert store.rolled_back(bad.digests) == "a test"
    assert store.rolled_back(good.digests) is None
    assert store.rolled_back(Digests(bad.weights_sha256, None)) == "a test"
    assert store.rolled_back(Digests(bad.weights_sha256, "0" * 64)) is None


def test_what_was_rolled_back_is_known_until_it_is_deployed_again(store, save, trained):
    good, bad = save(), save(trained.weights + b" ")
    store.promote(decision(store, good))
    store.promote(decision(store, bad))
    assert store.rolled_back(bad.digests) is None
    back = store.rollback("customers complain", "me")
    assert store.rolled_back(bad.digests) == back.reason
    assert store.rolled_back(good.digests) is None
    store.promote(decision(store, bad))
    assert store.rolled_back(bad.digests) is None


def test_prune_keeps_the_newest_what_is_deployed_and_what_it_replaced(store, save):
    manifests = [save() for _ in range(6)]
    store.promote(decision(store, manifests[0]))
    store.promote(decision(store, manifests[1]))
    assert store.prune(keep=2).versions == [manifests[3].name, manifests[2].name]
    assert store.versions() == [manifests[index].name for index in (5, 4, 1, 0)]
    with pytest.raises(ValueError, match="at least 1"):
        store.prune(keep=0)


def test_prune_keeps_the_reference_and_what_waits(store, save):
    manifests = [save() for _ in range(5)]
    store.promote(decision(store, manifests[0]))
    for manifest in manifests[1:3]:
        store.promote(decision(store, manifest).model_copy(update={"reference_version": manifests[0].name}))
    store.put(f"{manifests[3].name}/predicted-x.labels", b"labels")
    store.record(decision(store, manifests[3], "waiting"))
    assert store.prune(keep=1).versions == []
    store.record(decision(store, manifests[4], "waiting"))
    assert store.prune(keep=1).versions == [manifests[3].name]
    assert list(store.list_objects(f"{manifests[3].name}/")) == []


def test_a_prefix_that_names_one_version_is_enough(store, save):
    one, other = save().name, save().name
    assert store.resolve(one) == one
    begin = next(end for end in range(len(one)) if one[:end] != other[:end])
    assert store.resolve(one[:begin]) == one
    with pytest.raises(UnknownModel, match="the beginning of several versions: "):
        store.resolve(one[: begin - 1])
    for name in ("nonsense", "", "../x"):
        with pytest.raises(UnknownModel, match="there is no model version"):
            store.resolve(name)


def test_what_waits_is_approved_once(store, save, trained):
    first, second = save(), save(trained.weights + b" ")
    store.promote(decision(store, first))
    assert store.waiting() is None
    waiting = decision(store, second, "waiting")
    store.record(waiting)
    assert store.waiting() == waiting
    approved = store.approve(second.name, "fine", "kim")
    assert store.production() == approved
    assert approved.replaces == waiting.replaces
    assert [d.outcome for d in store.decisions()] == ["promoted", "waiting", "promoted"]
    with pytest.raises(ModelStoreError, match="does not wait"):
        store.approve(second.name, "fine", "kim")
    assert store.rollback("no", "kim").version == first.name
    with pytest.raises(UnknownModel):
        store.rollback("again", "kim", to="")
    assert [row.state for row in overview(store).rows] == ["rolled back", "deployed, reference"]


def test_what_waits_stays_until_something_is_deployed_or_it_is_refused(store, save, trained):
    first, second, other = save(), save(), save(trained.weights + b" ")
    store.promote(decision(store, first))
    waiting = decision(store, second, "waiting")
    store.record(waiting)
    store.record(waiting)  # as after a kill that may have kept it out of the trail
    store.record(decision(store, other, "refused"))
    assert store.waiting() == waiting
    store.record(decision(store, second, "refused"))
    assert store.waiting() is None
    store.record(waiting)
    store.promote(decision(store, other))
    assert store.waiting() is None
    with pytest.raises(PromotionConflict):
        store.record(waiting)  # something was deployed while it was scored
    assert len(store.decisions()) == 5


def test_what_waited_by_earlier_code_is_approved(store, save):
    first, second = save(), save()
    waiting = decision(store, second, "waiting").model_copy(update={"sequence": None})
    store.create_object("waiting.json", waiting.model_dump_json().encode())
    store.create_object(f"decisions/{waiting.id}.json", waiting.model_dump_json(exclude={"sequence"}).encode())
    store.record(waiting)  # the gate decides again about what waits
    assert len(store.decisions()) == 1
    store.delete_object(PRODUCTION)
    assert store.waiting() == waiting
    for damage in (b"{", waiting.model_copy(update={"outcome": "withdrawn"}).model_dump_json().encode()):
        overwrite(store, "waiting.json", damage)
        assert store.waiting() is None
    overwrite(store, "waiting.json", waiting.model_dump_json().encode())
    approved = store.approve(second.name, "fine", "kim")
    assert store.production() == approved
    assert approved.sequence == 1
    store.promote(decision(store, first))
    assert store.waiting() is None


def test_a_damaged_version_is_listed_as_damaged(store, save):
    name = save().name
    overwrite(store, f"{name}/{MANIFEST}", b"{")
    [row] = overview(store).rows
    assert (row.version, row.state, row.validation_accuracy) == (name, "damaged", None)


def test_decisions_by_a_test_set_are_counted(store, save):
    manifest = save()
    by_evidence = {"test_digest": "a" * 64, "max_regression": 0.003}

    def refused(**fields) -> Decision:
        return decision(store, manifest, "refused").model_copy(update=fields)

    assert store.earlier_decisions(store.state(), "a" * 64) == 0
    for outcome in ("refused", "waiting"):
        store.record(decision(store, manifest, outcome).model_copy(update=by_evidence))
    store.record(refused(test_digest="a" * 64))  # below the threshold: the images did not decide
    store.promote(decision(store, manifest).model_copy(update=by_evidence))
    assert store.earlier_decisions(store.state(), "a" * 64) == 3
    assert store.earlier_decisions(store.state(), "b" * 64) == 0
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: store.record(refused(**by_evidence)), range(16)))
    assert store.earlier_decisions(store.state(), "a" * 64) == 19
    assert len(store.decisions()) == 20


def test_counts_of_earlier_code_go_on(store, save):
    key = f"test_sets/{'a' * 32}.json"
    store.create_object(key, b'{"decisions": 7}')
    assert store.earlier_decisions(store.state(), "a" * 64) == 7
    by_evidence = {"test_digest": "a" * 64, "max_regression": 0.003, "earlier_decisions": 7}
    store.record(decision(store, save(), "refused").model_copy(update=by_evidence))
    assert store.earlier_decisions(store.state(), "a" * 64) == 8
    store.delete_object(PRODUCTION)
    for damage in (b"{}", b'{"decisions": -1}', b'{"decisions": Infinity}', b"[" * 9999):
        overwrite(store, key, damage)
        with pytest.raises(CorruptModel, match="delete it to count anew"):
            store.earlier_decisions(store.state(), "a" * 64)


def test_put_writes_whether_there_is_one_or_not(store):
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: store.put("some/key", str(number).encode()), range(16)))
    assert int(store.read_object("some/key")[0]) in range(16)


def test_damaged_production_is_an_error_and_not_nothing(store, save):
    store.promote(decision(store, save()))
    overwrite(store, PRODUCTION, b"{}")
    with pytest.raises(CorruptModel, match=r"production\.json"):
        store.production()


def test_primitives(store):
    with pytest.raises(ObjectMissing):
        store.read_object("a/b")
    token = store.create_object("a/c", b"0")
    with pytest.raises(ObjectChanged):
        store.replace_object("a/b", b"0", token)
    store.delete_object("a/c")
    assert store.create_object("a/b", b"1")
    with pytest.raises(ObjectChanged):
        store.create_object("a/b", b"2")
    data, token = store.read_object("a/b")
    assert data == b"1"
    store.replace_object("a/b", b"3", token)
    with pytest.raises(ObjectChanged):
        store.replace_object("a/b", b"4", token)
    assert list(store.list_objects("a/")) == ["a/b"]
    store.delete_object("a/b")
    store.delete_object("a/b")
    assert list(store.list_objects()) == []
