"""The gate's rules, a case a line."""

import pytest

from mnist_pipeline.ml.gate import Contender, decide
from mnist_pipeline.ml.settings import DeploymentSettings

CANDIDATE = Contender("new", "digest of new", 0.97)


def incumbent(accuracy: float) -> Contender:
    return Contender("old", "digest of old", accuracy)


@pytest.mark.parametrize(
    ("rival", "policy", "rolled_back", "outcome", "words"),
    [
        (None, {}, None, "promoted", "nothing was deployed before"),
        (None, {"accuracy_threshold": 0.97}, None, "promoted", "reaches 0.9700"),
        (None, {"accuracy_threshold": 0.98}, None, "refused", "0.9700 is below the threshold 0.9800"),
        (0.96, {}, None, "promoted", "holds against the incumbent's 0.9600"),
        (0.97, {}, None, "promoted", "holds against"),
        (0.98, {}, None, "refused", "worse than the incumbent's 0.9800"),
        (0.98, {"max_regression": 0.01}, None, "promoted", "holds against"),
        (0.98, {"max_regression": 0.009}, None, "refused", "by more than 0.0090"),
        (0.90, {}, "it was slow", "refused", "it was slow"),
        (0.99, {"strategy": "manual"}, "it was slow", "promoted", "by hand"),
        (0.99, {"strategy": "manual", "reason": "I say so"}, None, "promoted", "I say so"),
        (0.99, {"strategy": "force", "reason": "I must"}, None, "promoted", "I must"),
    ],
)
def test_decide(rival, policy, rolled_back, outcome, words):
    verdict = decide(CANDIDATE, incumbent(rival) if rival else None, DeploymentSettings(**policy), rolled_back)
    assert verdict.outcome == outcome
    assert words in verdict.reason


@pytest.mark.parametrize("policy", [{}, {"strategy": "manual"}, {"strategy": "force", "reason": "x"}])
def test_the_same_weights_are_not_deployed_again(policy):
    twin = Contender("twin", CANDIDATE.weights_sha256, 0.97)
    verdict = decide(CANDIDATE, twin, DeploymentSettings(**policy))
    assert verdict.outcome == "unchanged"
    assert "twin" in verdict.reason
