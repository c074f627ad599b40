"""The gate's rules, a case a line, and its statistics against other ways to compute them."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest

from mnist_pipeline.ml.comparison import CONFIDENCE, Contender, compare, regression_bound, weigh
from mnist_pipeline.ml.gate import decide
from mnist_pipeline.ml.records import Digests
from mnist_pipeline.ml.settings import DeploymentSettings

IMAGES = 10_000
MISTAKES = 50


def contender(name: str, mistakes: range | list[int], images: int = IMAGES) -> Contender:
    correct = np.ones(images, bool)
    correct[list(mistakes)] = False
    return Contender(name, Digests(f"weights of {name}", f"file of {name}"), correct)


INCUMBENT = contender("old", range(MISTAKES))


def candidate(fixed: int, broken: int, images: int = IMAGES) -> Contender:
    """One that fixes and breaks so many images of the incumbent's."""
    return contender("new", [*range(fixed, MISTAKES), *range(MISTAKES, MISTAKES + broken)], images)


@pytest.mark.parametrize(
    ("fixed", "broken", "policy", "rolled_back", "outcome", "words"),
    [
        (25, 25, {}, None, "promoted", "fixes 25 and breaks 25 of 10,000 images of the incumbent (0.9950)"),
        (25, 25, {}, None, "promoted", "worse by at most 0.00119, within the margin of 0.003"),
        (10, 26, {}, None, "promoted", "worse by at most 0.00267, within"),
        (10, 40, {}, None, "refused", "worse by at most 0.00426, not shown to be within the margin of 0.003"),
        (0, 30, {}, None, "refused", "not shown to be within the margin"),
        (10, 40, {"max_regression": 0.005}, None, "promoted", "within the margin of 0.005"),
        (10, 26, {"max_regression": 0.002}, None, "refused", "not shown to be within the margin of 0.002"),
        (25, 25, {"max_regression": 0.001}, None, "promoted", "too few images for the margin of 0.001 (they hold"),
        (25, 25, {"max_regression": 0.001}, None, "promoted", "nothing shows that it is worse (p = 0.56)"),
        (25, 25, {"max_regression": 0.0}, None, "promoted", "too few images"),
        (10, 40, {"max_regression": 0.001}, None, "refused", "and it is worse (p = 1.2e-05)"),
        (25, 25, {"max_regression": 0.001, "when_too_few": "keep"}, None, "refused", "when_too_few is 'keep'"),
        (49, 0, {"max_regression": 0.001, "when_too_few": "keep"}, None, "promoted", "better by at least 0.00388"),
        (25, 25, {"when_too_few": "keep"}, None, "promoted", "within the margin"),
        (25, 25, {"accuracy_threshold": 0.996}, None, "refused", "0.9950 is below the threshold 0.9960"),
        (49, 0, {}, "it was slow", "refused", "it was slow"),
        (25, 25, {"strategy": "approval"}, None, "waiting", "within the margin"),
        (10, 40, {"strategy": "approval"}, None, "refused", "not shown to be within the margin"),
        (10, 40, {"strategy": "manual"}, "it was slow", "promoted", "by hand"),
        (10, 40, {"strategy": "manual", "reason": "I say so"}, None, "promoted", "I say so"),
        (10, 40, {"strategy": "force", "reason": "I must"}, None, "promoted", "I must"),
    ],
)
def test_decide(fixed, broken, policy, rolled_back, outcome, words):
    verdict = decide(candidate(fixed, broken), INCUMBENT, None, DeploymentSettings(**policy), rolled_back)
    assert verdict.outcome == outcome
    assert words in verdict.reason
    [comparison] = verdict.comparisons
    assert (comparison.fixed, comparison.broken, comparison.images) == (fixed, broken, IMAGES)


@pytest.mark.parametrize(
    ("threshold", "strategy", "outcome"),
    [(0.995, "quality", "promoted"), (0.995, "approval", "waiting"), (0.9951, "quality", "refused")],
)
def test_where_nothing_is_deployed_the_threshold_decides(threshold, strategy, outcome):
    policy = DeploymentSettings(accuracy_threshold=threshold, strategy=strategy)
    verdict = decide(candidate(25, 25), None, None, policy)
    assert verdict.outcome == outcome
    assert verdict.comparisons == ()
    assert verdict.too_few_images is None
    assert verdict.becomes_reference is (outcome != "refused")


@pytest.mark.parametrize("policy", [{}, {"strategy": "manual"}, {"strategy": "force", "reason": "x"}])
def test_the_same_weights_are_not_deployed_again(policy):
    twin = candidate(25, 25)._replace(name="twin")
    verdict = decide(candidate(25, 25), twin, None, DeploymentSettings(**policy))
    assert verdict.outcome == "unchanged"
    assert "twin" in verdict.reason


def test_a_small_loss_to_the_incumbent_that_adds_up_is_a_large_one_to_the_reference():
    reference = contender("best", range(25, MISTAKES))
    verdict = decide(candidate(25, 35), INCUMBENT, reference, DeploymentSettings())
    assert decide(candidate(25, 35), INCUMBENT, None, DeploymentSettings()).outcome == "promoted"
    assert verdict.outcome == "refused"
    assert "of the reference (0.9975)" in verdict.reason
    assert "incumbent" not in verdict.reason  # that comparison holds
    assert [comparison.role for comparison in verdict.comparisons] == ["incumbent", "reference"]


@pytest.mark.parametrize(("fixed", "broken", "becomes"), [(25, 25, False), (30, 10, False), (34, 9, True)])
def test_what_beats_the_reference_becomes_the_reference(fixed, broken, becomes):
    """One-sided p: 0.0011 of 30 to 10 is not enough, 0.0001 of 34 to 9 is."""
    verdict = decide(candidate(fixed, broken), INCUMBENT, None, DeploymentSettings())
    assert verdict.outcome == "promoted"
    assert verdict.becomes_reference is becomes
    by_hand = decide(candidate(fixed, broken), INCUMBENT, None, DeploymentSettings(strategy="manual"))
    assert by_hand.becomes_reference


def test_the_record_says_so_where_1000_images_are_to_hold_three_tenths_of_a_point():
    old = contender("old", range(10), 1000)
    verdict = decide(contender("new", range(5, 15), 1000), old, None, DeploymentSettings(max_regression=0.003))
    assert verdict.too_few_images is True
    assert verdict.comparisons[0].margin_held == pytest.approx(0.008, abs=0.0005)
    wider = decide(contender("new", range(5, 15), 1000), old, None, DeploymentSettings(max_regression=0.012))
    assert wider.too_few_images is False


def score_by_maximum_likelihood(regression: float, fixed: int, broken: int, images: int) -> float:
    """Tango's statistic with the restricted maximum found by search over the probability to fix an image."""

    def unlikelihood(p: float) -> float:
        q, rest = p + regression, 1 - 2 * p - regression
        return -(fixed * math.log(p) + broken * math.log(q) + (images - fixed - broken) * math.log(rest))

    bounds = (max(0.0, -regression) + 1e-12, (1 - regression) / 2 - 1e-12)
    p = minimize_scalar(unlikelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    return (broken - fixed - images * regression) / math.sqrt(images * (2 * p + regression - regression**2))


@pytest.mark.parametrize(("fixed", "broken", "images"), [(5, 5, 1000), (12, 9, 10_000), (1, 30, 500), (40, 2, 300)])
def test_the_interval_is_that_of_the_score_test(fixed, broken, images):
    bound = regression_bound(fixed, broken, images)
    assert score_by_maximum_likelihood(bound, fixed, broken, images) == pytest.approx(-1.6449, abs=2e-3)
    found = weigh(fixed, broken, images, 10)
    assert found.regression_low < (broken - fixed) / images < found.regression_high == bound
    assert found.p_worse == binomtest(broken, fixed + broken, alternative="greater").pvalue
    assert found.p_better == binomtest(fixed, fixed + broken, alternative="greater").pvalue


@pytest.mark.parametrize(
    ("fixed", "broken", "images"), [(0, 0, 1), (0, 0, 1000), (0, 1, 1), (1, 0, 1), (0, 1000, 1000), (1000, 0, 1000)]
)
def test_the_ends_of_the_range(fixed, broken, images):
    found = weigh(fixed, broken, images, mistakes=fixed)
    assert -1 <= found.regression_low <= (broken - fixed) / images <= found.regression_high <= 1
    if images == 1000 and fixed == broken:
        assert found.regression_high == pytest.approx(0.0027, abs=1e-4)  # nothing broken is not no regression at all


def test_the_interval_covers_also_where_a_candidate_fixes_nothing():
    """There, an interval given the number of disagreements covers in half of cases."""
    chance = np.random.default_rng(0)
    broken = chance.binomial(1000, 0.012, 500)
    covered = np.mean([regression_bound(0, int(count), 1000) >= 0.012 for count in broken])
    assert covered >= CONFIDENCE - 0.01


def test_a_comparison_is_about_the_same_images():
    comparison = compare(candidate(3, 4), INCUMBENT, "incumbent")
    assert comparison.version == "old"
    assert comparison.test_accuracy == 0.995
    assert comparison.regression == pytest.approx(0.0001)
