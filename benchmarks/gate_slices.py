"""Slices in the simulation of the gate, for many decisions at once: the rule is that of `ml.gate.lost_slices`.

The suite is one as of a data set with ten classes: each image is in one class, and in a tenth at an end of a statistic
twice as often where it is hard; twelve corruptions of up to 10,000 images with three times as many hard ones; and 100
held-out labels, of which ten are hard. The images of a corruption are asked about independently of the plain ones.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from mnist_pipeline.ml.gate import P_SLICES
from mnist_pipeline.ml.settings import DeploymentSettings

CLASSES, TAILS, CORRUPTIONS, HELD_OUT = 10, 10, 12, 100


class Slices(NamedTuple):
    """The slices of a simulated suite."""

    member: np.ndarray
    """float32 (hard images, slices): 1 where a hard image is in a slice; those of the test set come first."""
    images: np.ndarray
    """int (slices,): how many images each has."""


def simulated_slices(images: int, hard: int) -> Slices:
    """Return the slices of a suite over so many test images, of which so many are hard."""
    chance = np.random.default_rng(1)
    classes = np.eye(CLASSES)[chance.integers(0, CLASSES, hard)]
    tails = chance.random((hard, TAILS)) < 0.2
    beyond = np.repeat(np.eye(CORRUPTIONS + 1), [3 * hard] * CORRUPTIONS + [HELD_OUT // 10], axis=0)
    test = np.concatenate([classes, tails, np.zeros((hard, CORRUPTIONS + 1))], 1)
    others = np.concatenate([np.zeros((len(beyond), CLASSES + TAILS)), beyond], 1)
    sizes = [images // CLASSES] * CLASSES + [images // 10] * TAILS + [images] * CORRUPTIONS + [HELD_OUT]
    return Slices(np.concatenate([test, others]).astype(np.float32), np.array(sizes))


def lost(new: np.ndarray, others: list[np.ndarray], slices: Slices, policy: DeploymentSettings) -> np.ndarray:
    """Return bool (years,): whether each new model loses a slice to one of the others, each bool (years, hard images).

    The arrays say which hard images a model labels wrongly.
    """
    fixed = np.concatenate([(other & ~new).astype(np.float32) @ slices.member for other in others], 1)
    broken = np.concatenate([(new & ~other).astype(np.float32) @ slices.member for other in others], 1)
    p_worse = stats.binom.sf(broken - 1, fixed + broken, 0.5)  # type: ignore[attr-defined]  # (years, slices)
    regression = (broken - fixed) / np.tile(slices.images, len(others))
    order = np.argsort(p_worse, axis=1)
    ranked = np.take_along_axis(p_worse, order, 1) * np.arange(p_worse.shape[1], 0, -1)
    adjusted = np.empty_like(p_worse)
    np.put_along_axis(adjusted, order, np.maximum.accumulate(ranked, axis=1), 1)
    return ((adjusted <= P_SLICES) & (regression > policy.max_slice_regression)).any(1)
