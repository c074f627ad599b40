"""The ranking of the configurations of a sweep: the mean of their seeds, on validation images only."""

from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from mnist_pipeline.stores.errors import CorruptModel

if TYPE_CHECKING:
    from mnist_pipeline.experiments.trials import SweepRecord, Trial

INTERVAL = 0.95
"""The level of the interval of a difference of means."""


class Row(NamedTuple):
    """A configuration in the leaderboard. Accuracies are 0..1, losses in nats, both means over the seeds."""

    configuration: int
    """Its number; 0 is the one without a change, if any."""
    values: dict[str, Any]
    trials: tuple["Trial", ...]
    """Those that succeeded."""
    planned: int
    """The number of seeds that it is or will be trained with."""
    score: float
    """The mean of the metric of the sweep."""
    spread: float | None
    """The standard deviation of the metric over the seeds; None of a single one."""
    validation_accuracy: float
    validation_loss: float
    seconds: float
    """The mean wall clock of a training."""
    difference: tuple[float, float, float] | None = None
    """The mean of the metric less that of the configuration without a change, and the ends of the 95% interval of that;
    None where either has fewer than two seeds, or none of them differs. It is not corrected for the number of
    configurations that were tried."""

    @property
    def best_trial(self) -> "Trial":
        """The trial with the least validation loss of those that succeeded."""
        return min(self.trials, key=lambda trial: measured(trial, "validation_loss"))


def ranked(record: "SweepRecord") -> list[Row]:
    """Return the configurations with a trial that succeeded, the best by the mean of its seeds at first.

    Where means are equal the one with less loss comes first. Configurations of which seeds are missing take part as
    far as they are trained.
    """
    rows = []
    for number in sorted({trial.configuration for trial in record.trials}):
        trials = [trial for trial in record.trials if trial.configuration == number]
        done = tuple(trial for trial in trials if trial.version is not None)
        if not done:
            continue
        scores = _scores(record, done)
        rows.append(
            Row(
                configuration=number,
                values=trials[0].values,
                trials=done,
                planned=len(trials),
                score=fmean(scores),
                spread=stdev(scores) if len(scores) > 1 else None,
                validation_accuracy=fmean(measured(trial, "validation_accuracy") for trial in done),
                validation_loss=fmean(measured(trial, "validation_loss") for trial in done),
                seconds=fmean(measured(trial, "seconds") for trial in done),
            )
        )
    sign = -1 if record.sweep.metric == "validation_accuracy" else 1
    return sorted(rows, key=lambda row: (sign * row.score, row.validation_loss))


def compared(record: "SweepRecord", rows: list[Row]) -> list[Row]:
    """Return the rows with their difference from the configuration without a change.

    The interval is Welch's (1947, The generalization of Student's problem), for means of different variance.
    """
    base = next((row for row in rows if not row.values), None)
    if base is None or len(base.trials) < 2:
        return rows
    return [
        row if row is base or len(row.trials) < 2 else row._replace(difference=_difference(record, row, base))
        for row in rows
    ]


def measured(trial: "Trial", name: str) -> float:
    """Return a number of a trial that succeeded. Raises CorruptModel if its record lacks it."""
    if (value := getattr(trial, name)) is None:
        raise CorruptModel(
            f"the record of the version {trial.version} has no {name}: delete its sweep, and start it again"
        )
    return float(value)


def _difference(record: "SweepRecord", row: Row, base: Row) -> tuple[float, float, float] | None:
    from scipy import stats

    ours, theirs = _scores(record, row.trials), _scores(record, base.trials)
    if not (row.spread or base.spread):  # nothing varies, and so nothing is known about how much it would
        return None
    interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(INTERVAL)
    return row.score - base.score, float(interval.low), float(interval.high)


def _scores(record: "SweepRecord", trials: "tuple[Trial, ...]") -> list[float]:
    return [measured(trial, record.sweep.metric) for trial in trials]
