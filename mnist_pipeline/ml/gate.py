"""The deployment gate: a pure function from paired results and a policy to a verdict in words and numbers."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from mnist_pipeline.ml.comparison import Contender, Evidence, compare, compare_slices, holm
from mnist_pipeline.ml.manifest import Comparison
from mnist_pipeline.ml.settings import DeploymentSettings
from mnist_pipeline.ml.suite import HELD_OUT, LEAST_IMAGES, Slice

P_WORSE = 0.025
"""The p-value up to which a candidate counts as worse where there are too few images for the margin."""

P_SLICES = 0.025
"""The level, of all slices together, up to which a candidate counts as worse on one of them (Holm 1979)."""

P_BETTER = 0.001
"""The p-value up to which a candidate counts as better than the reference, and becomes it."""


class Verdict(NamedTuple):
    """The answer of the gate."""

    outcome: Literal["promoted", "waiting", "refused", "unchanged"]
    reason: str
    comparisons: tuple[Comparison, ...] = ()
    slices: tuple[Comparison, ...] = ()
    """The comparisons on each slice that both models know an image of, with the incumbent and with the reference."""
    lost_slices: tuple[Comparison, ...] = ()
    """Those for which the candidate was refused."""
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
    slices: Sequence[Slice] = (),
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
    - No slice of the suite pays for the rest: a candidate is refused that is worse than the incumbent or the reference
      on a slice of at least LEAST_IMAGES images, as the exact McNemar test says at a level of 2.5% of all slices
      together (one-sided, adjusted by Holm 1979, A simple sequentially rejective multiple test procedure), and whose
      observed regression there is more than `max_slice_regression`.
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
    comparisons, on_slices = _compared(candidate, incumbent, reference, slices)
    match policy.strategy:
        case "manual" | "force":
            reason = policy.reason or "chosen by hand"
            return Verdict("promoted", reason, comparisons, on_slices, becomes_reference=True)
        case "quality" | "approval":
            verdict = _by_quality(candidate, comparisons, policy, rolled_back_because)
            return _by_slices(verdict, on_slices, policy)
        case "observe":
            raise ValueError("the strategy 'observe' decides nothing")


def _compared(
    candidate: Contender, incumbent: Contender | None, reference: Contender | None, slices: Sequence[Slice]
) -> tuple[tuple[Comparison, ...], tuple[Comparison, ...]]:
    """Return the comparisons with whom there is, on the test images and on the slices."""
    roles: tuple[tuple[Literal["incumbent", "reference"], Contender | None], ...] = (
        ("incumbent", incumbent),
        ("reference", reference),
    )
    rivals = [(role, rival) for role, rival in roles if rival]
    on_slices = [one for role, rival in rivals for one in compare_slices(candidate, rival, role, slices)]
    return tuple(compare(candidate, rival, role) for role, rival in rivals), tuple(on_slices)


def lost_slices(comparisons: Sequence[Comparison], policy: DeploymentSettings) -> tuple[Comparison, ...]:
    """Return the comparisons on slices for which a candidate is refused, as `decide` says."""
    # Held-out labels are told, and refuse nothing: an incumbent of before they were held out was trained on them.
    counted = [one for one in comparisons if one.images >= LEAST_IMAGES and one.slice != HELD_OUT]
    adjusted = holm([comparison.p_worse for comparison in counted])
    return tuple(
        comparison
        for comparison, p in zip(counted, adjusted, strict=True)
        if p <= P_SLICES and comparison.regression > policy.max_slice_regression
    )


def _by_slices(verdict: Verdict, on_slices: tuple[Comparison, ...], policy: DeploymentSettings) -> Verdict:
    """Refuse what would be promoted and loses a slice; say what became of the held-out labels."""
    verdict = verdict._replace(slices=on_slices)
    if verdict.outcome == "refused":
        return verdict
    lost = lost_slices(on_slices, policy)
    if lost:
        said = "; ".join(_slice_in_words(comparison) for comparison in sorted(lost, key=lambda one: one.p_worse))
        margin = f"max_slice_regression {policy.max_slice_regression:g}"
        reason = f"{verdict.reason}; but worse by more than {margin} on {said}"
        return verdict._replace(outcome="refused", reason=reason, lost_slices=lost, becomes_reference=False)
    held_out = [comparison for comparison in on_slices if comparison.slice == HELD_OUT]
    return verdict._replace(reason="; ".join([verdict.reason, *map(_slice_in_words, held_out)]))


def _slice_in_words(comparison: Comparison) -> str:
    """Return the comparison on a slice, for a line of a message."""
    ours = comparison.test_accuracy - comparison.regression
    return (
        f"{comparison.slice}: {comparison.test_accuracy:.4f} of the {comparison.role} to {ours:.4f} "
        f"(fixes {comparison.fixed} and breaks {comparison.broken} of {comparison.images:,}, a change by "
        f"{-comparison.regression_high:+.4f} to {-comparison.regression_low:+.4f}, p = {comparison.p_worse:.2g})"
    )


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
        return Verdict("refused", reason, comparisons, too_few_images=too_few)
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
    return Verdict(
        "refused" if failed else promoted, said, comparisons, too_few_images=too_few, becomes_reference=better
    )


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
