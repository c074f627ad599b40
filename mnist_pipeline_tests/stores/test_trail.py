"""The audit trail keeps its order and its meaning whatever clocks, damage and earlier code do to it."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from mnist_pipeline.ml.manifest import Decision
from mnist_pipeline.stores import CorruptModel, MemoryModelStore, PromotionConflict, decisions
from mnist_pipeline.stores.decisions import new_decision
from mnist_pipeline.stores.overview import overview
from mnist_pipeline.stores.state import PRODUCTION
from mnist_pipeline.stores.trail import Damaged, entry_name, key_of
from mnist_pipeline_tests.stores.conftest import KINDS, make_store
from mnist_pipeline_tests.stores.racing import Told, check


class Clock(datetime):
    """A clock that is wrong by `off`."""

    off = timedelta(0)

    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + cls.off


@pytest.fixture
def clock(monkeypatch) -> type[Clock]:
    monkeypatch.setattr(decisions, "datetime", Clock)
    monkeypatch.setattr(Clock, "off", timedelta(0))
    return Clock


def made(store, manifest, outcome="promoted", **fields) -> Decision:
    return new_decision(
        outcome=outcome,
        reason="good",
        version=manifest.name,
        weights_sha256=manifest.weights_sha256,
        onnx_sha256=manifest.onnx_sha256,
        incumbent=store.state().deployed,
        actor="test",
        **{"strategy": "quality"} | fields,
    )


def test_the_order_is_that_of_the_deployments_and_not_of_clocks(store, save, trained, clock):
    """Two deployers, whose clocks are two minutes apart: what was rolled back stays known."""
    good, bad = save(), save(trained.weights + b" ")
    store.promote(made(store, good))
    clock.off = timedelta(minutes=2)
    store.promote(made(store, bad))
    clock.off = timedelta(0)
    back = store.rollback("customers complain", "kim")
    store.record(refused := made(store, bad, "refused"))
    clock.off = timedelta(minutes=-2)
    store.record(also_refused := made(store, bad, "refused"))
    assert store.rolled_back(bad.digests) == "customers complain"
    trail = store.decisions()
    assert [entry.sequence for entry in trail] == [3, 3, 3, 2, 1]
    assert trail[:3] == [refused, also_refused, back]
    assert [entry.version for entry in trail] == [bad.name, bad.name, good.name, bad.name, good.name]
    assert store.decisions(limit=2) == trail[:2]
    [row, _] = overview(store).rows
    assert (row.version, row.state, row.decision) == (bad.name, "rolled back", "refused (quality)")


def test_a_late_refusal_stands_with_the_deployment_it_was_decided_against(store, save):
    first, second = save(), save()
    late = made(store, second, "refused")
    store.promote(made(store, first))
    store.promote(made(store, second))
    store.record(late)
    assert [entry.sequence for entry in store.decisions()] == [2, 1, 0]


def test_a_rollback_carries_the_score_of_what_it_deploys(store, save):
    first, second = save(), save()
    store.promote(made(store, first, test_accuracy=0.9, test_digest="a" * 64))
    store.promote(made(store, second, test_accuracy=0.8))
    back = store.rollback("why", "me")
    assert (back.version, back.test_accuracy, back.test_digest) == (first.name, 0.9, "a" * 64)


@pytest.mark.parametrize("damage", [b"{", b"", b'{"id": "x"}', b"[" * 9999, b"\xff"])
def test_a_damaged_entry_is_shown_and_stops_nothing(store, save, damage):
    first, second = save(), save()
    store.promote(made(store, first))
    store.record(refused := made(store, second, "refused"))
    store.promote(promoted := made(store, second))
    key = key_of(entry_name(refused))
    store.replace_object(key, damage, store.read_object(key)[1])
    newest, damaged, oldest = store.decisions()
    assert newest == promoted
    assert isinstance(damaged, Damaged) and damaged.key == key and damaged.problem
    assert oldest.version == first.name
    assert [row.decision for row in overview(store).rows] == ["promoted (quality)", "promoted (quality)"]
    store.record(made(store, first, "refused"))
    assert store.rollback("why", "me").version == first.name


def earlier_store(store, save, trained) -> tuple:
    """As earlier code left a store: no numbers, a trail by clocks, of which one was wrong."""
    versions = [save(trained.weights + b" " * index) for index in range(3)]
    chain: list[Decision] = []
    times = [datetime(2099, 1, 1, 12, minute, tzinfo=UTC) for minute in (0, 4, 2)]
    deployed, strategies = [*versions[:2], versions[0]], ["quality", "quality", "rollback"]
    for manifest, strategy, when in zip(deployed, strategies, times, strict=True):
        chain.append(
            Decision(
                id=f"{when:%Y%m%dT%H%M%S.%fZ}-{len(chain):08d}",
                outcome="promoted",
                strategy=strategy,
                reason="customers complain" if strategy == "rollback" else "good",
                version=manifest.name,
                weights_sha256=manifest.weights_sha256,
                onnx_sha256=manifest.onnx_sha256,
                incumbent_version=chain[-1].version if chain else None,
                replaces=chain[-1].id if chain else None,
                decided_at=when,
                test_accuracy=0.9,
            )
        )
        store.create_object(f"decisions/{chain[-1].id}.json", chain[-1].model_dump_json(exclude={"sequence"}).encode())
    store.create_object(PRODUCTION, chain[-1].model_dump_json(exclude={"sequence"}).encode())
    return versions, chain


def test_a_store_of_earlier_code_is_gone_on_with(store, save, trained):
    versions, chain = earlier_store(store, save, trained)
    assert store.production() == chain[-1]
    assert store.rolled_back(versions[1].digests) == "customers complain"
    assert store.rolled_back(versions[0].digests) is None
    by_clocks = [chain[1].id, chain[2].id, chain[0].id]
    assert [entry.id for entry in store.decisions()] == by_clocks
    assert [row.test_accuracy for row in overview(store).rows] == [None, 0.9, 0.9]
    store.promote(promoted := made(store, versions[2]))
    assert promoted.sequence == 1
    assert store.rolled_back(versions[1].digests) == "customers complain"
    assert store.decisions()[0] == promoted
    assert len(store.decisions()) == 4
    back = store.rollback("again", "me")
    assert (back.version, back.sequence, back.test_accuracy) == (versions[0].name, 2, 0.9)
    assert store.rolled_back(versions[2].digests) == "again"


def test_what_a_damaged_entry_of_earlier_code_may_have_said_is_not_guessed(store, save, trained):
    versions, chain = earlier_store(store, save, trained)
    key = f"decisions/{chain[1].id}.json"
    store.replace_object(key, b"{", store.read_object(key)[1])
    assert store.production() == chain[-1]  # a service goes on
    assert len(store.decisions()) == 3
    with pytest.raises(CorruptModel, match=rf"{chain[1].id}.json is damaged .* delete it to go on without"):
        store.promote(made(store, versions[2]))
    store.delete_object(key)
    store.promote(made(store, versions[2]))
    assert store.production().version == versions[2].name


def test_production_can_be_written_again_from_the_trail(store, save, trained):
    """As CorruptModel says: by the latest promotion, which lacks the rest of the state."""
    good, bad, next_one = (save(trained.weights + b" " * number) for number in range(3))
    store.promote(made(store, good))
    store.promote(made(store, bad))
    back = store.rollback("customers complain", "kim")
    content = store.read_object(key_of(entry_name(back)))[0]
    store.replace_object(PRODUCTION, content, store.read_object(PRODUCTION)[1])
    assert store.rolled_back(bad.digests) == "customers complain"
    store.promote(made(store, next_one))
    assert store.rolled_back(bad.digests) == "customers complain"
    assert [entry.sequence for entry in store.decisions()] == [4, 3, 2, 1]


def test_what_earlier_code_deploys_over_a_trail_with_numbers_comes_after_them(store, save, trained):
    good, bad, next_one = (save(trained.weights + b" " * number) for number in range(3))
    store.promote(made(store, good))
    store.promote(made(store, bad))
    back = made(store, good, strategy="rollback").model_copy(update={"reason": "by earlier code"})
    content = back.model_dump_json(exclude={"sequence"}).encode()
    store.replace_object(PRODUCTION, content, store.read_object(PRODUCTION)[1])
    store.create_object(f"decisions/{back.id}.json", content)
    store.create_object("decisions/!README.json", b"{}")  # of nobody's code
    assert store.rolled_back(bad.digests) == "by earlier code"
    store.promote(promoted := made(store, next_one))
    assert promoted.sequence == 4
    assert store.rolled_back(bad.digests) == "by earlier code"


def test_a_trail_that_goes_round_in_a_circle_is_an_error(store, save):
    decision = made(store, save()).model_copy(update={"sequence": None})
    content = decision.model_copy(update={"replaces": decision.id}).model_dump_json(exclude={"sequence"}).encode()
    store.create_object(PRODUCTION, content)
    store.create_object(f"decisions/{decision.id}.json", content)
    with pytest.raises(CorruptModel, match="replaces itself in the end"):
        store.state()


@pytest.mark.parametrize("word", ["caf\udce9", "a\ud800"])
def test_a_reason_that_is_not_utf_8_is_stored_as_text(store, save, word):
    first, second = save(), save()
    store.promote(made(store, first))
    store.record(made(store, second, "waiting"))
    approved = store.approve(second.name, word, word)
    assert store.production() == approved == store.decisions()[0]
    assert store.rollback(word, word).reason.startswith(word[0])
    assert len(store.decisions()) == 4


def test_what_waits_no_more_when_it_is_deployed_is_not_approved(store, save, monkeypatch):
    first, second = save(), save()
    store.promote(made(store, first))
    store.record(made(store, second, "waiting"))
    load = type(store).resolve

    def refused_meanwhile(self, name: str) -> str:
        state = self.state()
        monkeypatch.setattr(type(store), "resolve", load)
        self.record(made(self, second, "refused"))
        monkeypatch.setattr(type(store), "state", once_more(state, type(store).state))
        return name

    monkeypatch.setattr(type(store), "resolve", refused_meanwhile)
    with pytest.raises(PromotionConflict, match="does not wait for approval any more"):
        store.approve(second.name, "fine", "kim")
    assert store.production().version == first.name


def once_more(old, state):
    """The state of a moment ago, once."""
    left = [old]
    return lambda self: left.pop() if left else state(self)


def test_a_rollback_to_the_same_weights_is_no_rollback_of_them(store, save):
    first, second = save(), save()
    store.promote(made(store, first))
    store.promote(made(store, second))
    store.rollback("the other one", "me")
    assert store.rolled_back(first.digests) is None


@pytest.mark.parametrize("action", ["save", "promote", "waiting", "refused", "approve", "rollback", "prune"])
def test_a_kill_after_any_write_leaves_a_whole_store(save_to, trained, monkeypatch, action):
    """Whatever was cut off, the chain is whole, and what took effect is in the trail in the end, with its marker."""
    store: Any = MemoryModelStore(bucket=uuid.uuid4().hex)
    save, numbers = partial(save_to, store), iter(range(1, 1000))
    actions: dict[str, Callable[[], object]] = {
        "save": save,
        "promote": lambda: store.promote(made(store, save(trained.weights + b" " * next(numbers)))),
        "waiting": lambda: store.record(made(store, save(), "waiting", test_accuracy=0.5)),
        "refused": lambda: store.record(made(store, save(), "refused")),
        "approve": lambda: store.approve(store.waiting().version, "fine", "kim"),
        "rollback": lambda: store.rollback("why", "me", to=store.versions()[-1]),
        "prune": lambda: (save(), save(), store.prune(keep=1, orphans_older_than=timedelta(0))),
    }
    for _ in range(2):
        actions["promote"]()
    primitives = ("create_object", "replace_object", "delete_object")
    kinds = {name: getattr(type(store), name) for name in primitives}
    for cut in range(1, 60):
        actions["waiting"]()
        writes = iter(range(1, 1000))

        def dying(name: str, cut: int = cut, writes=writes):
            def write(self, *arguments):
                result = kinds[name](self, *arguments)
                if next(writes) == cut:
                    raise KeyboardInterrupt
                return result

            return write

        waiting = store.waiting()
        with monkeypatch.context() as patch:
            for name in primitives:
                patch.setattr(type(store), name, dying(name))
            try:
                actions[action]()
                break
            except KeyboardInterrupt:
                pass
        deployed = store.production()
        store.verify(deployed.version)
        actions["promote"]()
        about = list(store.decisions_about(deployed.version))
        assert deployed in about or deployed.version not in store.versions()
        check(store, Told([], [], []), killed=True)
        assert waiting in store.decisions()
        store.prune(keep=1, orphans_older_than=timedelta(0))
    else:
        pytest.fail("it never came to its end")
    assert cut > 1


def test_keys_come_in_order_and_after_a_key(store):
    keys = sorted(["a/1", "a/2", "a.b", "a/b/c", "a0", "b", "decisions/1", "decisions/9", "decisions0", "z/y"])
    for key in reversed(keys):
        store.create_object(key, b"")
    assert list(store.list_objects()) == keys
    assert list(store.list_objects("a/")) == ["a/1", "a/2", "a/b/c"]
    assert list(store.list_objects("a/", after="a/1")) == ["a/2", "a/b/c"]
    for before, after in pairwise(keys):
        assert next(store.list_objects(after=before)) == after
    assert list(store.list_objects(after="zz")) == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "memory"])
def test_a_store_is_the_same_for_whoever_opens_it(kind, request, save_to):
    one, other = make_store(kind, request), make_store(kind, request)
    manifest = save_to(one)
    assert other.versions() == [manifest.name]
    assert one.address == other.address


def test_stores_in_memory_are_one_by_their_name(save_to):
    name = uuid.uuid4().hex
    manifest = save_to(MemoryModelStore(bucket=name))
    assert MemoryModelStore(bucket=name).versions() == [manifest.name]
    for number in range(100):
        assert MemoryModelStore(bucket=f"{name}-{number}").versions() == []
    assert MemoryModelStore(bucket=name, max_attempts=1).versions() == [manifest.name]
