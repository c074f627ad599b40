"""How often the deployment gate errs, simulated with its own rule: `python -m benchmarks.gate --years 2000`.

A year is 52 candidates, one a week, each decided about by comparing it with what is deployed and with the reference.
Some of the test images are hard: each model labels each of them wrongly with the same probability, by chance. A model
that is worse makes more mistakes, either on the hard images (`hard`) or on others (`new`), each where no other model
makes one.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from benchmarks.gate_slices import lost, simulated_slices
from benchmarks.tables import print_table
from mnist_pipeline.ml.comparison import Evidence, weigh
from mnist_pipeline.ml.gate import P_BETTER, holds
from mnist_pipeline.ml.settings import DeploymentSettings

Rule = Callable[[int, int, int, int], Evidence]
"""From images fixed, images broken, all images, and the other model's mistakes, as `weigh`."""

WEEKS = 52
LAST_QUARTER = slice(-13, None)


class TestSet(NamedTuple):
    """A set of test images and the margin that is asked for on it."""

    images: int
    hard_images: int
    margin: float
    wrong: float = 0.5
    """The probability that a usual model labels a hard image wrongly."""
    slices: bool = False
    """True where slices of a suite are looked at, too: see `benchmarks.gate_slices`."""

    @property
    def margin_images(self) -> float:
        """The margin as a number of images."""
        return self.images * self.margin


class Quality(NamedTuple):
    """How good a candidate truly is: its expected mistakes."""

    wrong: float
    """The probability of a mistake on each hard image."""
    new: float = 0.0
    """The expected number of mistakes on other images."""


class Models(NamedTuple):
    """One model in each of the years: its mistakes on the hard images, (years, hard images), and how many others.

    `beyond` are those on the hard images of the suite that are no test images, where there is one.
    """

    hard: np.ndarray
    new: np.ndarray
    beyond: np.ndarray

    @property
    def mistakes(self) -> np.ndarray:
        """The number of wrongly labelled images in each year."""
        return self.hard.sum(1) + self.new

    @property
    def everywhere(self) -> np.ndarray:
        """The mistakes on all hard images, bool (years, hard images of the suite)."""
        return np.concatenate([self.hard, self.beyond], 1)


class Years(NamedTuple):
    """The outcome of many years."""

    promoted: np.ndarray
    """bool (weeks, years)."""
    too_few: np.ndarray
    """bool (weeks, years): whether the record says that there are too few images."""
    worst_deployed: np.ndarray
    """The largest true regression, in images, that was deployed in each year."""


def simulate(
    test_set: TestSet,
    policy: DeploymentSettings,
    candidate: Callable[[int], Quality],
    years: int,
    weeks: int = WEEKS,
    seed: int = 0,
    rule: Rule = weigh,
) -> Years:
    """Run the gate for so many years, in which the candidate of a week is as good as `candidate(week)` says."""
    chance, cache = np.random.default_rng(seed), {}
    slices = simulated_slices(test_set.images, test_set.hard_images) if test_set.slices else None

    def model(quality: Quality) -> Models:
        hard = chance.random((years, test_set.hard_images)) < quality.wrong
        new, beyond = chance.poisson(quality.new, years), len(slices.member) - test_set.hard_images if slices else 0
        return Models(hard, new, chance.random((years, beyond), np.float32) < quality.wrong)

    def evidence(new: Models, other: Models) -> list[tuple[bool, bool, bool]]:
        """Whether the comparison holds, whether there are too few images, whether the new one beats the other."""
        fixed = (other.hard & ~new.hard).sum(1) + other.new
        broken = (new.hard & ~other.hard).sum(1) + new.new
        answers = []
        for counts in zip(fixed.tolist(), broken.tolist(), other.mistakes.tolist(), strict=True):
            if counts not in cache:
                found = rule(counts[0], counts[1], test_set.images, counts[2])
                too_few = found.margin_held > policy.max_regression
                cache[counts] = (holds(found, policy), too_few, found.p_better <= P_BETTER)
            answers.append(cache[counts])
        return answers

    incumbent = reference = model(Quality(test_set.wrong))
    regression, worst = np.zeros(years), np.zeros(years)
    promoted, too_few = np.zeros((weeks, years), bool), np.zeros((weeks, years), bool)
    for week in range(weeks):
        quality = candidate(week)
        new = model(quality)
        against = [np.array(evidence(new, other)) for other in (incumbent, reference)]
        promoted[week] = against[0][:, 0] & against[1][:, 0]
        if slices:
            promoted[week] &= ~lost(new.everywhere, [incumbent.everywhere, reference.everywhere], slices, policy)
        too_few[week] = against[0][:, 1] | against[1][:, 1]
        better = promoted[week] & against[1][:, 2]
        incumbent, reference = _replaced(incumbent, new, promoted[week]), _replaced(reference, new, better)
        true_regression = quality.new + (quality.wrong - test_set.wrong) * test_set.hard_images
        regression = np.where(promoted[week], true_regression, regression)
        worst = np.maximum(worst, regression)
    return Years(promoted, too_few, worst)


def _replaced(old: Models, new: Models, where: np.ndarray) -> Models:
    return Models(
        np.where(where[:, None], new.hard, old.hard),
        np.where(where, new.new, old.new),
        np.where(where[:, None], new.beyond, old.beyond),
    )


def equal(test_set: TestSet, week: int) -> Quality:
    """A candidate as good as what was deployed first."""
    return Quality(test_set.wrong)


def worse_by_new(test_set: TestSet, week: int, margins: float = 1.0) -> Quality:
    """A candidate worse by the margin, with mistakes where no other model makes one."""
    return Quality(test_set.wrong, margins * test_set.margin_images)


def worse_by_hard(test_set: TestSet, week: int) -> Quality:
    """A candidate worse by the margin, with as many mistakes more on the hard images as there is room for."""
    room = min(test_set.margin_images, (1 - test_set.wrong) * test_set.hard_images)
    return Quality(test_set.wrong + room / test_set.hard_images, test_set.margin_images - room)


def ever_worse(test_set: TestSet, week: int) -> Quality:
    """A candidate a tenth of the margin worse than that of the week before."""
    return worse_by_new(test_set, week, margins=(week + 1) / 10)


def fewer_mistakes(test_set: TestSet, week: int) -> Quality:
    """A candidate with 10% fewer mistakes."""
    return Quality(0.9 * test_set.wrong)


def error_rates(test_set: TestSet, policy: DeploymentSettings, years: int, seed: int = 0) -> dict[str, float]:
    """Return the share (0..1) of decisions or years in which each thing happens."""
    run = partial(simulate, test_set, policy, seed=seed)
    usual = run(partial(equal, test_set), years)
    beyond = partial(worse_by_new, test_set, margins=1.02)
    creeping = run(partial(ever_worse, test_set), years)
    return {
        "equal, promoted": usual.promoted.mean(),
        "equal, promoted in the last quarter": usual.promoted[LAST_QUARTER].mean(),
        "too few images": usual.too_few.mean(),
        "worse by the margin (new mistakes), promoted": run(
            partial(worse_by_new, test_set), 10 * years, 1
        ).promoted.mean(),
        "worse by the margin (hard images), promoted": run(
            partial(worse_by_hard, test_set), 10 * years, 1
        ).promoted.mean(),
        "years of ever worse candidates that go beyond the margin": (
            creeping.worst_deployed > test_set.margin_images + 1e-6
        ).mean(),
        "10% fewer mistakes, promoted within four weeks": run(partial(fewer_mistakes, test_set), years, 4)
        .promoted.any(0)
        .mean(),
        "years of candidates just beyond the margin that let one through": run(beyond, years).promoted.any(0).mean(),
    }


TEST_SETS = (
    TestSet(10_000, 100, 0.003),
    TestSet(1_000, 20, 0.012),
    TestSet(1_000, 20, 0.015),
    TestSet(1_000, 20, 0.003),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__)
    parser.add_argument("--years", type=int, default=2000, help="simulated years (default: %(default)s)")
    parser.add_argument("--slices", action="store_true", help="with the slices of the evaluation suite")
    options = parser.parse_args()
    sets = [test_set._replace(slices=options.slices) for test_set in TEST_SETS]
    rates = [error_rates(one, DeploymentSettings(max_regression=one.margin), options.years) for one in sets]
    header = ["", *(f"{test_set.images:,} images, {test_set.margin}" for test_set in TEST_SETS)]
    print_table(header, [[name, *(f"{rate[name]:.1%}" for rate in rates)] for name in rates[0]])


if __name__ == "__main__":
    main()
