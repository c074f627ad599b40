"""The paired comparison of two models, image by image, as numbers; see `ml.gate.decide` for the rule."""

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from mnist_pipeline.ml.manifest import Comparison
from mnist_pipeline.ml.records import Digests
from mnist_pipeline.ml.suite import Slice

CONFIDENCE = 0.95
"""The one-sided level of the interval of the regression."""

POWER = 0.8
"""The least probability that an equal model is promoted; below it there are too few images (Cohen 1988, Statistical
Power Analysis for the Behavioral Sciences)."""

TOLERANCE = 1e-9
"""The distance kept from the ends of the range of regressions, where the score is not defined."""


class Contender(NamedTuple):
    """A model version and its results on the current test images."""

    name: str
    digests: Digests
    correct: np.ndarray
    """bool (N,): whether the label it predicts for each test image is the true one."""
    unknown: np.ndarray | None = None
    """bool (N,): whether the true class of each image is one that it does not know; None: it knows all."""
    in_suite: "Contender | None" = None
    """The same of all images of the suite, the test images and more; None where it was not asked."""

    @property
    def accuracy(self) -> float:
        """The share of the images of classes that it knows which it labels correctly, 0..1."""
        return float((self.correct if self.unknown is None else self.correct[~self.unknown]).mean())

    def shares_classes(self, other: "Contender") -> bool:
        """Return whether there is an image of a class that both know."""
        return bool((~_unknown(self) & ~_unknown(other)).any())


class Evidence(NamedTuple):
    """Conclusions from the images on which two models disagree. Regressions and margins are shares of all, 0..1."""

    p_better: float
    """The exact McNemar p-value, one-sided: the probability of so many fixed images if the models were equal."""
    p_worse: float
    """The same of so many broken images."""
    regression_low: float
    """The lower end of the interval of the regression; a negative regression is a gain."""
    regression_high: float
    """The upper end of the interval of the regression."""
    margin_held: float
    """The smallest margin within which these images show an equal model to be, in a share POWER of cases."""


def compare(
    candidate: Contender, rival: Contender, role: Literal["incumbent", "reference"], chosen: Slice | None = None
) -> Comparison:
    """Return the comparison of two models on the same images, in the same order, of the classes that both know.

    There must be such images. With `chosen`, only those of a slice count.
    """
    known = ~_unknown(candidate) & ~_unknown(rival)
    if chosen:
        inside = np.zeros(len(known), bool)
        inside[chosen.positions] = True
        known &= inside
    ours, theirs = candidate.correct[known], rival.correct[known]
    fixed, broken, images = int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), len(theirs)
    evidence = weigh(fixed, broken, images, mistakes=int((~theirs).sum()))
    return Comparison(
        role=role,
        slice=chosen.name if chosen else None,
        version=rival.name,
        test_accuracy=float(theirs.mean()),
        images=images,
        images_of_other_classes=(len(chosen.positions) if chosen else len(known)) - images,
        fixed=fixed,
        broken=broken,
        regression=(broken - fixed) / images,
        **evidence._asdict(),
    )


def compare_slices(
    candidate: Contender, rival: Contender, role: Literal["incumbent", "reference"], slices: Sequence[Slice]
) -> list[Comparison]:
    """Return the comparison on each slice of which both models, both asked about the suite, know an image."""
    ours, theirs = candidate.in_suite, rival.in_suite
    if ours is None or theirs is None:
        return []
    known = ~_unknown(ours) & ~_unknown(theirs)
    return [compare(ours, theirs, role, one) for one in slices if known[one.positions].any()]


def _unknown(contender: Contender) -> np.ndarray:
    return np.zeros(len(contender.correct), bool) if contender.unknown is None else contender.unknown


def weigh(fixed: int, broken: int, images: int, mistakes: int) -> Evidence:
    """Return what follows from the disagreements with a model that makes `mistakes` on `images`; see `decide`."""
    disagreements = fixed + broken
    equal = max(mistakes, 1)
    broken_by_an_equal = int(stats.binom.ppf(POWER, equal, 0.5))  # type: ignore[attr-defined]
    return Evidence(
        p_better=_p_of_so_many(fixed, disagreements),
        p_worse=_p_of_so_many(broken, disagreements),
        regression_low=-regression_bound(broken, fixed, images),
        regression_high=regression_bound(fixed, broken, images),
        margin_held=regression_bound(equal - broken_by_an_equal, broken_by_an_equal, images),
    )


def _p_of_so_many(images: int, disagreements: int) -> float:
    """The probability of so many or more on one side, if both sides were equally likely."""
    return float(stats.binomtest(images, disagreements, alternative="greater").pvalue) if disagreements else 1.0


def regression_bound(fixed: int, broken: int, images: int) -> float:
    """Return the upper end of Tango's one-sided interval of the regression, at the level CONFIDENCE."""
    if broken == images:
        return 1.0
    critical = NormalDist().inv_cdf(CONFIDENCE)
    least = max((broken - fixed) / images, -1 + TOLERANCE) + TOLERANCE
    return float(brentq(lambda regression: _score(regression, fixed, broken, images) + critical, least, 1 - TOLERANCE))


def _score(regression: float, fixed: int, broken: int, images: int) -> float:
    """Tango's score statistic of a hypothetical regression, under which `expected` is the likeliest share to fix.

    It falls from 0, where that is the observed regression, and is a standard normal variable where it is the true one.
    """
    a = 2 * images
    b = (2 * images - broken + fixed) * regression - broken - fixed
    c = -fixed * regression * (1 - regression)
    expected = (sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    return (broken - fixed - images * regression) / sqrt(images * (2 * expected + regression * (1 - regression)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, in the same order.

    Holm 1979, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6.
    """
    order, adjusted, largest = sorted(range(len(p_values)), key=p_values.__getitem__), [0.0] * len(p_values), 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = largest
    return adjusted
