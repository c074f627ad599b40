"""The deployment gate: a pure function from paired results and a policy to a verdict in words and numbers."""

from math import sqrt
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from mnist_pipeline.ml.manifest import Comparison
from mnist_pipeline.ml.records import Digests
from mnist_pipeline.ml.settings import DeploymentSettings

CONFIDENCE = 0.95
"""The one-sided level of the interval of the regression."""

POWER = 0.8
"""The least probability that an equal model is promoted; below it there are too few images (Cohen 1988, Statistical
Power Analysis for the Behavioral Sciences)."""

TOLERANCE = 1e-9
"""The distance kept from the ends of the range of regressions, where the score is not defined."""

P_WORSE = 0.025
"""The p-value up to which a candidate counts as worse where there are too few images for the margin."""

P_BETTER = 0.001
"""The p-value up to which a candidate counts as better than the reference, and becomes it."""


class Contender(NamedTuple):
    """A model version and its results on the current test images."""

    name: str
    digests: Digests
    correct: np.ndarray
    """bool (N,): whether the label it predicts for each test image is the true one."""
    unknown: np.ndarray | None = None
    """bool (N,): whether the true class of each image is one that it does not know; None: it knows all."""

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


class Verdict(NamedTuple):
    """The answer of the gate."""

    outcome: Literal["promoted", "waiting", "refused", "unchanged"]
    reason: str
    comparisons: tuple[Comparison, ...] = ()
    too_few_images: bool | None = None
    """True where the images cannot hold the margin; None where it was not asked."""
    becomes_reference: bool = False
    """True where the candidate, once it is deployed, is the reference of later decisions."""

    @property
    def by_evidence(self) -> bool:
        """True where the test images decided."""
        return self.too_few_images is not None


def decide(
    candidate: Contender,
    incumbent: Contender | None,
    reference: Contender | None,
    policy: DeploymentSettings,
    rolled_back_because: str | None = None,
    same_task: bool = True,
) -> Verdict:
    """Decide whether `candidate` takes the place of `incumbent`, all scored on the same test images.

    The rule of the strategies `quality` and `approval`: a candidate that reaches `accuracy_threshold` is promoted if it
    can be shown to be not worse than the incumbent, nor than the reference, by more than `max_regression`.

    - Models are compared image by image. Of N images the candidate fixes some that the other model labels wrongly, and
      breaks some that it labels correctly; only those say which model is better (McNemar 1947, Note on the sampling
      error of the difference between correlated proportions or percentages, Psychometrika 12).
    - The regression is the share of broken images less that of fixed ones. The upper end of its one-sided 95% interval
      must be at most the margin: Tango's score interval (Tango 1998, Equivalence test and confidence interval for the
      difference in proportions for the paired-sample design, Statistics in Medicine 17). One that is exact given the
      number of disagreements (Clopper and Pearson 1934, of the share of broken ones among them) cannot be larger than
      they are: a candidate that breaks twelve of 1,000 and fixes none would be "at most 0.012 worse", and of those that
      are truly worse by just that, it would let more than half through.
    - Where the images cannot hold the margin, an equal model would be promoted in less than 80% of cases. The smallest
      margin that they hold is about 2.5 sqrt(m) / N, where m is the number of the other model's mistakes: as many
      disagreements as there are with an equal model that shares half of them. It depends on nothing that the
      candidate did, so that a bad candidate cannot earn itself the milder rule. `when_too_few` then decides: `promote`
      unless the exact McNemar test says worse (one-sided p at most 0.025), or `keep`.
    - The reference is the last deployed version that beat the reference before it (exact McNemar, one-sided p at most
      0.001) or was chosen by hand, also by a rollback. It keeps small regressions from adding up.

    The rates of errors, as benchmarks/gate.py simulates them where each model labels each of 100 of 10,000 images, or
    of 20 of 1,000, wrongly with probability 1/2 (BENCHMARKS.md has the table): with a margin of 0.003 on 10,000 images,
    and of 0.012 on 1,000, at most 5% of candidates that are worse by the margin are promoted, and in 95% of years of
    ever worse candidates nothing is deployed that is worse than the best by more than the margin. Of equal models 98%
    are promoted on the former, 92% on the latter (99% with a margin of 0.015). Many candidates are many chances: of 52
    just beyond the margin, one a week, one or more come through in over half of the years.

    `reference` is None where it is the incumbent itself. `rolled_back_because` is the reason for which these very
    weights were taken out of production; then only `manual` and `force` bring them back. `same_task` is False where the
    task of the incumbent has other names, which are not in the weights: then equal weights are another model.
    """
    if incumbent and same_task and candidate.digests.same(incumbent.digests):
        return Verdict("unchanged", f"{incumbent.name}, with the same weights, is deployed already")
    rivals: dict[Literal["incumbent", "reference"], Contender | None] = {
        "incumbent": incumbent,
        "reference": reference,
    }
    comparisons = tuple(compare(candidate, rival, role) for role, rival in rivals.items() if rival)
    match policy.strategy:
        case "manual":
            return Verdict("promoted", policy.reason or "chosen by hand", comparisons, becomes_reference=True)
        case "force":
            return Verdict("promoted", str(policy.reason), comparisons, becomes_reference=True)
        case "quality" | "approval":
            return _by_quality(candidate, comparisons, policy, rolled_back_because)
        case "observe":
            raise ValueError("the strategy 'observe' decides nothing")


def compare(candidate: Contender, rival: Contender, role: Literal["incumbent", "reference"]) -> Comparison:
    """Return the comparison of two models on the same images, in the same order, of the classes that both know.

    There must be such images.
    """
    known = ~_unknown(candidate) & ~_unknown(rival)
    ours, theirs = candidate.correct[known], rival.correct[known]
    fixed, broken, images = int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), len(theirs)
    evidence = weigh(fixed, broken, images, mistakes=int((~theirs).sum()))
    return Comparison(
        role=role,
        version=rival.name,
        test_accuracy=float(theirs.mean()),
        images=images,
        images_of_other_classes=len(known) - images,
        fixed=fixed,
        broken=broken,
        regression=(broken - fixed) / images,
        **evidence._asdict(),
    )


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


def holds(evidence: Evidence | Comparison, policy: DeploymentSettings) -> bool:
    """Return whether a candidate passes one comparison, as `decide` says."""
    if evidence.regression_high <= policy.max_regression:
        return True
    too_few = evidence.margin_held > policy.max_regression
    return too_few and policy.when_too_few == "promote" and evidence.p_worse > P_WORSE


def _by_quality(
    candidate: Contender,
    comparisons: tuple[Comparison, ...],
    policy: DeploymentSettings,
    rolled_back_because: str | None,
) -> Verdict:
    accuracy, threshold, margin = candidate.accuracy, policy.accuracy_threshold or 0.0, policy.max_regression
    too_few = any(comparison.margin_held > margin for comparison in comparisons) if comparisons else None
    if rolled_back_because is not None:
        reason = f"these weights were rolled back ({rolled_back_because}); deploy them with 'manual' or 'force'"
        return Verdict("refused", reason, comparisons)
    if accuracy < threshold:
        reason = f"test accuracy {accuracy:.4f} is below the threshold {threshold:.4f}"
        return Verdict("refused", reason, comparisons, too_few)
    promoted: Literal["promoted", "waiting"] = "promoted" if policy.strategy == "quality" else "waiting"
    if not comparisons:
        reason = f"test accuracy {accuracy:.4f} reaches {threshold:.4f}; nothing was deployed before"
        return Verdict(promoted, reason, becomes_reference=True)
    failed = [comparison for comparison in comparisons if not holds(comparison, policy)]
    said = f"test accuracy {accuracy:.4f}; " + "; ".join(
        _in_words(comparison, policy) for comparison in failed or comparisons
    )
    # Where there is no comparison with a reference, it is the incumbent.
    better = comparisons[-1].p_better <= P_BETTER
    return Verdict("refused" if failed else promoted, said, comparisons, too_few, becomes_reference=better)


def _in_words(comparison: Comparison, policy: DeploymentSettings) -> str:
    """Return one comparison and what it shows, for a line of a message."""
    high, held, margin = comparison.regression_high, comparison.margin_held, policy.max_regression
    p = f"(p = {comparison.p_worse:.2g})"
    others = comparison.images_of_other_classes
    left_out = f" of the classes that both know, which {others:,} are not," if others else ""
    said = (
        f"fixes {comparison.fixed} and breaks {comparison.broken} of {comparison.images:,} images{left_out} of the "
        f"{comparison.role} ({comparison.test_accuracy:.4f}): "
    )
    if high < 0:
        return f"{said}better by at least {-high:.5f} {p}"
    if high <= margin or held <= margin:
        within = "within" if high <= margin else "not shown to be within"
        return f"{said}worse by at most {high:.5f}, {within} the margin of {margin:g} {p}"
    said += f"too few images for the margin of {margin:g} (they hold {held:.5f}), "
    if policy.when_too_few == "keep":
        return f"{said}and when_too_few is 'keep' {p}"
    verdict = "and it is worse" if comparison.p_worse <= P_WORSE else "and nothing shows that it is worse"
    return f"{said}{verdict} {p}"
