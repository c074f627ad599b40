"""The gate's rates of errors, by the simulation in `benchmarks`."""

from functools import partial

import numpy as np
import pytest

from benchmarks.gate import TestSet as SimulatedTestSet
from benchmarks.gate import equal, error_rates, simulate
from benchmarks.gate_slices import lost, simulated_slices
from mnist_pipeline.ml.comparison import Contender, compare_slices
from mnist_pipeline.ml.gate import lost_slices
from mnist_pipeline.ml.records import Digests
from mnist_pipeline.ml.settings import DeploymentSettings
from mnist_pipeline.ml.suite import Slice


@pytest.mark.parametrize("slices", [False, True])
@pytest.mark.parametrize(
    ("test_set", "promoted"), [(SimulatedTestSet(10_000, 100, 0.003), 0.95), (SimulatedTestSet(1_000, 20, 0.012), 0.9)]
)
def test_the_rates_of_errors(test_set, promoted, slices):
    """A smaller simulation than that of BENCHMARKS.md, with room for its noise."""
    test_set = test_set._replace(slices=slices)
    rates = error_rates(test_set, DeploymentSettings(max_regression=test_set.margin), years=60)
    assert rates["too few images"] < 0.05
    assert rates["equal, promoted"] >= promoted - 0.02
    assert rates["equal, promoted in the last quarter"] >= promoted - 0.03
    assert rates["worse by the margin (new mistakes), promoted"] <= 0.08
    assert rates["worse by the margin (hard images), promoted"] <= 0.08
    assert rates["years of ever worse candidates that go beyond the margin"] <= 0.12
    assert rates["10% fewer mistakes, promoted within four weeks"] >= 0.9
    assert 0.3 <= rates["years of candidates just beyond the margin that let one through"] <= 0.9


def test_slices_are_lost_in_the_simulation_as_at_the_gate():
    simulated, policy, chance = simulated_slices(1_000, 20), DeploymentSettings(), np.random.default_rng(0)
    hard, easy = len(simulated.member), simulated.images.max()
    slices = [
        Slice(str(number), np.concatenate([inside, hard + np.arange(size - len(inside))]))
        for number, size in enumerate(simulated.images)
        for inside in [np.flatnonzero(simulated.member[:, number])]
    ]
    old, reference = chance.random((2, 40, hard)) < 0.5
    new = chance.random((40, hard)) < np.linspace(0.5, 0.8, 40)[:, None]
    outcomes = lost(new, [old, reference], simulated, policy)

    def contender(mistakes: np.ndarray) -> Contender:
        one = Contender("", Digests("", None), np.concatenate([~mistakes, np.ones(easy, bool)]))
        return one._replace(in_suite=one)

    for year, outcome in enumerate(outcomes):
        ours, *rivals = (contender(mistakes[year]) for mistakes in (new, old, reference))
        compared = [one for rival in rivals for one in compare_slices(ours, rival, "incumbent", slices)]
        assert bool(lost_slices(compared, policy)) == outcome
    assert 0.1 < outcomes.mean() < 0.9


def test_a_margin_that_the_images_do_not_hold_is_always_said():
    test_set = SimulatedTestSet(1_000, 20, 0.003)
    years = simulate(test_set, DeploymentSettings(max_regression=0.003), partial(equal, test_set), years=60, weeks=4)
    assert years.too_few.all()
    assert years.promoted.mean() > 0.9
