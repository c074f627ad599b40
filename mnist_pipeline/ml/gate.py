"""The deployment gate: a pure function from scores and policy to a verdict in words."""

from typing import Literal, NamedTuple

from mnist_pipeline.ml.settings import DeploymentSettings


class Contender(NamedTuple):
    """A model version and its score."""

    name: str
    weights_sha256: str
    test_accuracy: float
    """0..1, on the current test images."""


class Verdict(NamedTuple):
    """The answer of the gate."""

    outcome: Literal["promoted", "refused", "unchanged"]
    reason: str


def decide(
    candidate: Contender,
    incumbent: Contender | None,
    policy: DeploymentSettings,
    rolled_back_because: str | None = None,
) -> Verdict:
    """Decide whether `candidate` takes the place of `incumbent`, both scored on the same test images.

    `rolled_back_because` is the reason for which these very weights were taken out of production; then only
    `manual` and `force` bring them back.
    """
    if incumbent and candidate.weights_sha256 == incumbent.weights_sha256:
        return Verdict("unchanged", f"{incumbent.name}, with the same weights, is deployed already")
    match policy.strategy:
        case "manual":
            return Verdict("promoted", policy.reason or "chosen by hand")
        case "force":
            return Verdict("promoted", str(policy.reason))
        case "quality":
            return _by_quality(candidate, incumbent, policy, rolled_back_because)


def _by_quality(
    candidate: Contender, incumbent: Contender | None, policy: DeploymentSettings, rolled_back_because: str | None
) -> Verdict:
    accuracy, threshold = candidate.test_accuracy, policy.accuracy_threshold
    if rolled_back_because is not None:
        return Verdict(
            "refused", f"these weights were rolled back ({rolled_back_because}); deploy them with 'manual' or 'force'"
        )
    if accuracy < threshold:
        return Verdict("refused", f"test accuracy {accuracy:.4f} is below the threshold {threshold:.4f}")
    if incumbent is None:
        return Verdict("promoted", f"test accuracy {accuracy:.4f} reaches {threshold:.4f}; nothing was deployed before")
    against = f"the incumbent's {incumbent.test_accuracy:.4f} on the same images"
    # Accuracies are k/N: the tolerance keeps rounding from refusing a regression of exactly max_regression.
    if incumbent.test_accuracy - accuracy > policy.max_regression + 1e-9:
        return Verdict(
            "refused",
            f"test accuracy {accuracy:.4f} is worse than {against} by more than {policy.max_regression:.4f}",
        )
    return Verdict("promoted", f"test accuracy {accuracy:.4f} reaches {threshold:.4f} and holds against {against}")
