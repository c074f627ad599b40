"""The record of a sweep, in the store of each kind, and what is tried next."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from mnist_pipeline.experiments.naming import best_trial
from mnist_pipeline.experiments.ranking import ranked
from mnist_pipeline.experiments.sweep import SweepInvalid
from mnist_pipeline.experiments.trials import Sweeps
from mnist_pipeline.stores import MemoryModelStore, ModelStoreError, UnknownModel
from mnist_pipeline.stores.objects import EXPERIMENTS
from mnist_pipeline_tests.experiments.conftest import a_sweep

GRID = {"method": "grid", "configurations": None, "space": {"batch_size": {"choices": [16, 32, 256]}}}


@pytest.fixture
def sweeps(tmp_path) -> Sweeps:
    return Sweeps(MemoryModelStore(bucket=str(tmp_path)))


def values(record):
    return [trial.values for trial in record.trials]


def test_a_sweep_begins_once_goes_on_and_is_deleted(store, finish):
    sweeps = Sweeps(store)
    first = sweeps.begin(a_sweep(**GRID, seeds=[3, 4]))
    assert [(t.configuration, t.seed, t.values) for t in first.trials] == [
        *[(0, seed, {}) for seed in (3, 4)],
        *[(1, seed, {"batch_size": 16}) for seed in (3, 4)],
        *[(2, seed, {"batch_size": 32}) for seed in (3, 4)],  # 256 is what it is without a change
    ]
    assert first.exhausted and not first.is_complete
    assert (sweeps.open(), sweeps.names()) == (["some"], ["some"])
    done = finish(sweeps, "some", first.trials[0], 0.9)
    again = sweeps.begin(a_sweep(**GRID, seeds=[3, 4]))
    assert again.trials[0] == done
    assert again.trials[1:] == first.trials[1:]
    with pytest.raises(ModelStoreError, match="trials left to do: stop it first"):
        sweeps.delete("some")
    sweeps.close("some")
    assert sweeps.open() == []
    sweeps.begin(a_sweep(**GRID, seeds=[3, 4]))
    assert sweeps.open() == ["some"]
    sweeps.close("some")
    sweeps.models("some").put("mnist_cnn_x/weights", b"")
    sweeps.delete("some")
    assert list(store.list_objects()) == []
    with pytest.raises(UnknownModel, match="there is no sweep 'some', but none yet"):
        sweeps.read("some")


def test_the_first_version_of_a_trial_stays_and_two_writers_lose_nothing(store, finish):
    sweeps = Sweeps(store)
    record = sweeps.begin(a_sweep(method="random", configurations=8, baseline=False))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda trial: finish(sweeps, "some", trial, 0.5), record.trials))
    assert all(trial.version for trial in sweeps.read("some").trials)
    finish(sweeps, "some", record.trials[0], 0.9)
    assert sweeps.read("some").trials[0].validation_accuracy == 0.5


def test_another_sweep_of_the_same_name_is_refused_but_more_of_the_same_goes_on(sweeps, finish):
    sweeps.begin(a_sweep(method="random", configurations=2))
    for trial in sweeps.read("some").trials:
        finish(sweeps, "some", trial, 0.5)
    with pytest.raises(ModelStoreError, match="there is a sweep some that tries something else"):
        sweeps.begin(a_sweep(method="random", configurations=2, space={"epochs": {"choices": [1, 2]}}))
    before = sweeps.read("some")
    assert before.is_complete
    more = sweeps.begin(a_sweep(method="random", configurations=4, seeds=[0, 1]))
    assert more.trials[:3] == before.trials
    assert len(more.trials) == (1 + 4) * 2
    assert {trial.key for trial in more.trials} == {(number, seed) for number in range(5) for seed in (0, 1)}
    assert not more.is_complete
    assert sweeps.open() == ["some"]


def through(sweeps, finish, **fields):
    """A sweep from its beginning to its end: small rates and batches are good."""
    record = sweeps.begin(a_sweep(**fields))
    while not (record := sweeps.propose(record.sweep.name)).is_complete:
        for trial in record.trials:
            if not trial.is_done:
                rate, size = trial.values.get("learning_rate", 0.006), trial.values.get("batch_size", 256)
                finish(sweeps, record.sweep.name, trial, 1 - rate - size / 1000)
    return record


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_the_search_goes_on_from_the_record_as_if_nothing_had_happened(sweeps, finish, tmp_path, method):
    whole = through(sweeps, finish, method=method, configurations=16)
    assert len(whole.trials) == 17
    assert len({str(one) for one in values(whole)}) == 17
    assert all(0.001 <= one["learning_rate"] <= 0.03 for one in values(whole)[1:])
    assert {one["batch_size"] for one in values(whole)[1:]} <= {16, 32, 64}
    other = Sweeps(MemoryModelStore(bucket=f"{tmp_path}-2"))
    through(other, finish, method=method, configurations=7)  # as if killed there, and more asked for later
    assert values(through(other, finish, method=method, configurations=16)) == values(whole)
    another = through(Sweeps(MemoryModelStore(bucket=f"{tmp_path}-3")), finish, method=method, search_seed=1)
    assert values(another)[1:] != values(whole)[1:6]


def test_tpe_tries_more_of_what_did_well(sweeps, finish):
    tried = values(through(sweeps, finish, method="tpe", configurations=40, baseline=False))
    late = [one["learning_rate"] for one in tried[20:]]
    assert sum(rate < 0.005 for rate in late) > 14
    assert sum(one["batch_size"] == 16 for one in tried[20:]) > 14


def test_tpe_asks_for_one_at_a_time_also_while_others_run(sweeps, finish):
    record = sweeps.begin(a_sweep(configurations=5))
    assert values(record) == [{}]
    for count in (2, 3, 4):  # as many slots
        record = sweeps.propose("some")
        assert len(record.trials) == count
    assert len({str(one) for one in values(record)}) == 4
    assert not record.exhausted


def test_what_diverged_is_not_tried_again_and_counts_as_bad(sweeps, finish):
    record = sweeps.begin(a_sweep(configurations=30, baseline=False))
    while not (record := sweeps.propose("some")).is_complete:
        for trial in record.trials:
            if not trial.is_done:
                finish(sweeps, "some", trial, 0.9 if trial.values["learning_rate"] < 0.006 else None)
    late = record.trials[15:]
    assert sum(trial.problem is None for trial in late) > 10


def test_a_space_that_has_no_more_ends_the_sweep(sweeps, finish):
    space = {"batch_size": {"choices": [16, 32]}, "epochs": {"low": 1, "high": 2}}
    record = through(sweeps, finish, method="tpe", configurations=50, space=space)
    assert len(record.trials) == 5
    assert record.is_complete


def test_the_best_of_another_sweep_are_tried_again_beside_no_change(sweeps, finish):
    through(sweeps, finish, method="tpe", settings={"epochs": 2, "conv_dropout": 0.2})
    record = sweeps.begin(
        a_sweep(
            name="finals",
            method="best",
            best_of="some",
            configurations=2,
            space={},
            seeds=[0, 1],
            settings={"epochs": 9},
        )
    )
    best = sorted(sweeps.read("some").trials[1:], key=lambda trial: trial.validation_accuracy or 0, reverse=True)[:2]
    assert values(record) == [{}, {}, *[best[0].values] * 2, *[best[1].values] * 2]
    assert record.sweep.settings == {"epochs": 9, "conv_dropout": 0.2}
    with pytest.raises(UnknownModel, match="there is no sweep 'none'"):
        sweeps.begin(a_sweep(name="x", method="best", best_of="none", space={}))


def test_names_of_trials(sweeps, finish):
    record = sweeps.begin(a_sweep(**GRID))
    assert [record.name_of(trial) for trial in record.trials] == ["some/000-s0", "some/001-s0", "some/002-s0"]
    assert sweeps.chosen("some/002-s0").trial == record.trials[2]
    for name, said in {
        "some/007-s0": "the sweep some has no trial some/007-s0",
        "some": "is not the name of a trial, such as learning_rate/007-s0",
        "none/000-s0": "there is no sweep 'none', but some",
        "../../x/000-s0": "is not the name of a trial",
    }.items():
        with pytest.raises(UnknownModel, match=said):
            sweeps.chosen(name)
    with pytest.raises(ModelStoreError, match=r"no trial of the sweep some has succeeded: none is done yet"):
        best_trial(sweeps, "newest")
    finish(sweeps, "some", record.trials[0])
    with pytest.raises(ModelStoreError, match="has succeeded: the loss diverged"):
        best_trial(sweeps, "some")
    with pytest.raises(ModelStoreError, match="the trial some/000-s0 has no version: the loss diverged"):
        best_trial(sweeps, "some/000-s0")
    finish(sweeps, "some", record.trials[1], 0.7)
    finish(sweeps, "some", record.trials[2], 0.8)
    assert best_trial(sweeps, "newest").trial.key == (2, 0)


def test_what_is_no_change_is_tried_once(sweeps, finish):
    space = {"batch_size": {"choices": [64, 256]}}
    for method in ("random", "tpe", "grid"):
        record = through(sweeps, finish, name=method, method=method, configurations=5, space=space)
        assert values(record) == [{}, {"batch_size": 64}]


@pytest.mark.parametrize("fewer", [{"configurations": 3}, {"seeds": [0]}, {"seeds": [1, 2]}], ids=str)
def test_nothing_can_be_taken_from_a_sweep(sweeps, fewer):
    grid = GRID | {"configurations": 4, "seeds": [0, 1], "space": {"batch_size": {"choices": [8, 16, 32, 64, 128]}}}
    before = sweeps.begin(a_sweep(**grid))
    with pytest.raises(ModelStoreError, match="configurations and seeds can be added"):
        sweeps.begin(a_sweep(**grid | fewer))
    assert sweeps.read("some") == before
    assert len(sweeps.begin(a_sweep(**grid | {"configurations": 5, "seeds": [0, 1, 2]})).trials) == 6 * 3


def test_more_of_the_best_can_be_tried_and_longer(sweeps, finish):
    through(sweeps, finish, method="tpe", space={"epochs": {"low": 1, "high": 9}}, configurations=5)
    best = {"name": "finals", "method": "best", "best_of": "some", "space": {}, "settings": {"conv_dropout": 0.0}}
    first = sweeps.begin(a_sweep(**best, configurations=1))
    assert [sorted(one) for one in values(first)] == [[], ["epochs"]]
    more = sweeps.begin(a_sweep(**best, configurations=3))
    assert values(more)[:2] == values(first)
    assert len(more.trials) == 4
    longer = sweeps.begin(a_sweep(**best | {"name": "longer", "settings": {"epochs": 20}}, configurations=2))
    assert values(longer) == [{}]  # its own setting counts, and nothing else was varied
    with pytest.raises(SweepInvalid, match="momentum has an effect only with"):
        sweeps.begin(a_sweep(**best | {"name": "x", "settings": {"momentum": 0.5}}, configurations=2))
    sweeps.close("some")
    sweeps.delete("some")
    assert sweeps.begin(a_sweep(**best, configurations=3)) == more


def test_a_sweep_of_other_code_is_still_there(sweeps, finish):
    record = through(sweeps, finish, configurations=2)
    content = json.loads(sweeps.store.read_object(f"{EXPERIMENTS}some/sweep.json")[0])
    content["sweep"]["settings"] = {"a_setting_of_before": 1}
    content["sweep"]["space"]["learning_rate"]["low"] = 0
    content["something_new"] = content["trials"][0]["something_new"] = 1
    sweeps.store.put(f"{EXPERIMENTS}some/sweep.json", json.dumps(content).encode())
    read = sweeps.read("some")
    assert [trial.version for trial in read.trials] == [trial.version for trial in record.trials]
    assert ranked(read) == ranked(record)
    assert sweeps.names() == ["some"]
    sweeps.store.put(f"{EXPERIMENTS}some/sweep.json", b"{}")
    assert sweeps.names() == ["some"]
    sweeps.delete("some")
    assert list(sweeps.store.list_objects(EXPERIMENTS)) == []
