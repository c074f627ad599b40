"""The gate's rule about slices, a case a line."""

import numpy as np
import pytest
from scipy.stats import binomtest

from mnist_pipeline.ml.comparison import Contender, compare_slices, holm
from mnist_pipeline.ml.gate import decide, lost_slices
from mnist_pipeline.ml.settings import DeploymentSettings
from mnist_pipeline.ml.suite import HELD_OUT, Slice
from mnist_pipeline_tests.ml.test_gate import INCUMBENT, candidate, contender

BEYOND = 2_000
"""Images that are asked besides the test images: those of one slice, and of another."""
IMAGES = len(INCUMBENT.correct)
THIN, BLURRED = (Slice(name, np.arange(start, start + 1_000)) for name, start in (("thin", 0), ("blurred", 1_000)))


def asked(one: Contender, wrong: range | list[int]) -> Contender:
    """Add the answers about the suite: those of the test images, and mistakes beyond."""
    beyond = np.ones(BEYOND, bool)
    beyond[list(wrong)] = False
    return one._replace(in_suite=one._replace(correct=np.concatenate([one.correct, beyond])))


def beyond(one: Slice, images: int | None = None) -> Slice:
    return one._replace(positions=IMAGES + one.positions[:images])


def policy_of(**policy) -> DeploymentSettings:
    return DeploymentSettings(accuracy_threshold=0.9, **policy)


@pytest.mark.parametrize(
    ("fixed", "broken", "images", "policy", "outcome"),
    [
        (10, 10, 1_000, {}, "promoted"),
        (0, 19, 1_000, {}, "promoted"),  # it is shown to be worse, but by less than the margin
        (0, 21, 1_000, {}, "refused"),
        (40, 62, 1_000, {}, "promoted"),  # by more than the margin, but not shown to be worse
        (0, 19, 1_000, {"max_slice_regression": 0.01}, "refused"),
        (0, 200, 1_000, {"max_slice_regression": 1.0}, "promoted"),
        (0, 21, 1_000, {"strategy": "approval"}, "refused"),
        (10, 10, 1_000, {"strategy": "approval"}, "waiting"),
    ],
)
def test_a_slice_that_is_lost_is_named(fixed, broken, images, policy, outcome):
    old = asked(INCUMBENT, range(100))
    new = asked(candidate(25, 25), [*range(fixed, 100), *range(100, 100 + broken)])
    slices = [beyond(THIN, images), beyond(BLURRED)]
    verdict = decide(new, old, None, policy_of(**policy), slices=slices)
    assert verdict.outcome == outcome
    assert "within the margin of 0.003" in verdict.reason
    if outcome == "refused":
        assert [one.slice for one in verdict.lost_slices] == ["thin"]
        margin = policy.get("max_slice_regression", 0.02)
        words = f"worse by more than max_slice_regression {margin:g} on thin: 0.9000 of the incumbent to "
        assert (
            f"{words}{0.9 + (fixed - broken) / 1000:.4f} (fixes {fixed} and breaks {broken} of 1,000" in verdict.reason
        )
    else:
        assert verdict.lost_slices == ()
    first = verdict.slices[0]
    assert (first.slice, first.fixed, first.broken, first.images) == ("thin", fixed, broken, 1_000)
    assert first.p_worse == pytest.approx(binomtest(broken, fixed + broken, alternative="greater").pvalue)
    assert first.regression_low < first.regression == (broken - fixed) / 1_000 < first.regression_high


def test_a_slice_counts_from_thirty_images_and_the_more_there_are_the_less_each_says():
    old, new = asked(INCUMBENT, []), asked(candidate(25, 25), range(8))
    few, enough = beyond(THIN, 29), beyond(THIN, 30)
    assert decide(new, old, None, policy_of(), slices=[few]).outcome == "promoted"
    assert decide(new, old, None, policy_of(), slices=[enough]).outcome == "refused"
    others = [Slice(f"another {number}", IMAGES + np.arange(1_000, 1_100)) for number in range(7)]
    assert decide(new, old, None, policy_of(), slices=[enough, *others[:5]]).outcome == "refused"  # 6 / 256
    assert decide(new, old, None, policy_of(), slices=[enough, *others]).outcome == "promoted"  # 8 / 256


def test_the_reference_is_compared_with_on_slices_too():
    reference, old = asked(contender("best", range(50)), []), asked(INCUMBENT, range(40))
    new = asked(candidate(25, 25), range(40))
    assert decide(new, old, None, policy_of(), slices=[beyond(THIN)]).outcome == "promoted"
    verdict = decide(new, old, reference, policy_of(), slices=[beyond(THIN)])
    assert (verdict.outcome, [one.role for one in verdict.lost_slices]) == ("refused", ["reference"])
    assert not verdict.becomes_reference


def test_what_became_of_the_held_out_labels_stands_in_the_reason():
    old, new = asked(INCUMBENT, range(8)), asked(candidate(25, 25), [0])
    held_out = Slice(HELD_OUT, IMAGES + np.arange(12))
    verdict = decide(new, old, None, policy_of(), slices=[held_out])
    assert verdict.outcome == "promoted"
    many = Slice(HELD_OUT, IMAGES + np.arange(1_000))  # an incumbent of before trained on them
    memorised = decide(asked(new, range(400)), asked(old, []), None, policy_of(), slices=[many])
    assert (memorised.outcome, memorised.lost_slices) == ("promoted", ())
    words = "held-out labels: 0.3333 of the incumbent to 0.9167 (fixes 7 and breaks 0 of 12, a change by +0.29"
    assert words in verdict.reason


def test_nothing_is_compared_on_slices_that_one_was_not_asked_about_or_does_not_know():
    old, new = asked(INCUMBENT, []), asked(candidate(25, 25), range(500))
    assert decide(new, INCUMBENT, None, policy_of(), slices=[beyond(THIN)]).outcome == "promoted"
    unknown = np.zeros(IMAGES + BEYOND, bool)
    unknown[IMAGES : IMAGES + 1_000] = True
    assert old.in_suite
    stranger = old._replace(in_suite=old.in_suite._replace(unknown=unknown))
    [comparison] = compare_slices(new, stranger, "incumbent", [beyond(THIN), beyond(BLURRED)])
    assert comparison.slice == "blurred"
    unknown[IMAGES + 990 : IMAGES + 1_000] = False
    first, _ = compare_slices(new, stranger, "incumbent", [beyond(THIN), beyond(BLURRED)])
    assert (first.images, first.images_of_other_classes) == (10, 990)


def test_people_deploy_whatever_the_slices_say():
    old, new = asked(INCUMBENT, []), asked(candidate(25, 25), range(500))
    for policy in ({"strategy": "force", "reason": "now"}, {"strategy": "manual", "model_name": "new"}):
        verdict = decide(new, old, None, DeploymentSettings(**policy), slices=[beyond(THIN)])
        assert (verdict.outcome, len(verdict.slices), verdict.lost_slices) == ("promoted", 1, ())


def test_holm_adjusts_as_published():
    """The example of Holm's procedure: the smallest of four counts four times, the next three times, never less."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    assert lost_slices([], policy_of()) == ()
