"""The gate's rates of errors, by the simulation in `benchmarks`."""

from functools import partial

import pytest

from benchmarks.gate import TestSet as SimulatedTestSet
from benchmarks.gate import equal, error_rates, simulate
from mnist_pipeline.ml.settings import DeploymentSettings


@pytest.mark.parametrize(
    ("test_set", "promoted"), [(SimulatedTestSet(10_000, 100, 0.003), 0.95), (SimulatedTestSet(1_000, 20, 0.012), 0.9)]
)
def test_the_rates_of_errors(test_set, promoted):
    """A smaller simulation than that of BENCHMARKS.md, with room for its noise."""
    rates = error_rates(test_set, DeploymentSettings(max_regression=test_set.margin), years=60)
    assert rates["too few images"] < 0.05
    assert rates["equal, promoted"] >= promoted - 0.02
    assert rates["equal, promoted in the last quarter"] >= promoted - 0.03
    assert rates["worse by the margin (new mistakes), promoted"] <= 0.08
    assert rates["worse by the margin (hard images), promoted"] <= 0.08
    assert rates["years of ever worse candidates that go beyond the margin"] <= 0.12
    assert rates["10% fewer mistakes, promoted within four weeks"] >= 0.9
    assert 0.3 <= rates["years of candidates just beyond the margin that let one through"] <= 0.9


def test_a_margin_that_the_images_do_not_hold_is_always_said():
    test_set = SimulatedTestSet(1_000, 20, 0.003)
    years = simulate(test_set, DeploymentSettings(max_regression=0.003), partial(equal, test_set), years=60, weeks=4)
    assert years.too_few.all()
    assert years.promoted.mean() > 0.9
