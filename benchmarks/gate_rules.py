"""The gate's rule beside others, in the same simulation: `python -m benchmarks.gate_rules --years 2000`."""

import argparse
from functools import partial
from math import sqrt
from statistics import NormalDist

from scipy import stats

from benchmarks.gate import TEST_SETS, Rule, TestSet, equal, ever_worse, simulate, worse_by_hard, worse_by_new
from benchmarks.tables import print_table
from mnist_pipeline.ml.comparison import Evidence, weigh
from mnist_pipeline.ml.settings import DeploymentSettings

FEW_HARD = TestSet(10_000, 40, 0.003)
"""A better model than usual: 20 mistakes."""


def clopper_pearson(fixed: int, broken: int, images: int, mistakes: int, *, by_mistakes: bool) -> Evidence:
    """Return the upper bound (2U - 1) n / N, exact given the n disagreements, one-sided 97.5%.

    There are too few images by the incumbent's mistakes, or else by the candidate's own disagreements.
    """
    n, level = fixed + broken, 0.975
    share = 1.0 if broken == n else float(stats.beta.ppf(level, broken + 1, fixed))  # type: ignore[attr-defined]
    held = 2 * NormalDist().inv_cdf(level) * sqrt(max(mistakes, 1) if by_mistakes else n) / images
    high = (2 * share - 1) * n / images
    return weigh(fixed, broken, images, mistakes)._replace(regression_high=high, margin_held=held)


def bonett_price(fixed: int, broken: int, images: int, mistakes: int, *, level: float) -> Evidence:
    """Return the adjusted Wald interval of Bonett and Price 2012, Statistical Methods in Medical Research 21."""
    p, q = (fixed + 1) / (images + 2), (broken + 1) / (images + 2)
    high = q - p + NormalDist().inv_cdf(level) * sqrt((p + q - (q - p) ** 2) / (images + 2))
    return weigh(fixed, broken, images, mistakes)._replace(regression_high=high)


RULES: dict[str, Rule] = {
    "Tango's score interval, 95% (this one)": weigh,
    "Clopper-Pearson given the disagreements, 97.5%; too few by the candidate's disagreements": partial(
        clopper_pearson, by_mistakes=False
    ),
    "the same; too few by the incumbent's mistakes": partial(clopper_pearson, by_mistakes=True),
    "Bonett and Price's adjusted Wald interval, 95%": partial(bonett_price, level=0.95),
    "the same, 97.5%": partial(bonett_price, level=0.975),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_rules", description=__doc__)
    parser.add_argument("--years", type=int, default=2000, help="simulated years (default: %(default)s)")
    years = parser.parse_args().years
    rows = []
    for name, rule in RULES.items():
        for test_set in (TEST_SETS[0], FEW_HARD, TEST_SETS[1]):
            run = partial(simulate, test_set, DeploymentSettings(max_regression=test_set.margin), rule=rule)
            usual = run(partial(equal, test_set), years)
            once = [run(partial(kind, test_set), 10 * years, 1).promoted for kind in (worse_by_new, worse_by_hard)]
            creeping = run(partial(ever_worse, test_set), years).worst_deployed > test_set.margin_images + 1e-6
            shares = [usual.promoted, *once, creeping, usual.too_few]
            where = f"{test_set.images:,}, {test_set.hard_images} hard, {test_set.margin}"
            rows.append([name, where, *(f"{share.mean():.1%}" for share in shares)])
    header = ["rule", "images, margin", "equal", "worse: new mistakes", "worse: hard images", "beyond the margin"]
    print_table([*header, "too few images"], rows)


if __name__ == "__main__":
    main()
