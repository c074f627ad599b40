"""The leaderboard of a sweep, as tables for pages and the command line."""

import json
from typing import Any, NamedTuple

from mnist_pipeline.experiments.pages import inline, render, script
from mnist_pipeline.experiments.ranking import Row, compared, ranked
from mnist_pipeline.experiments.search import study_of
from mnist_pipeline.experiments.trials import SweepRecord
from mnist_pipeline.stores.errors import ModelStoreError

LEAST_FOR_IMPORTANCE = 4
"""Fewer configurations say nothing about importance."""

MIB = 2**20


class Leaderboard(NamedTuple):
    """The configurations of a sweep, the best at first."""

    record: SweepRecord
    rows: list[Row]
    failed: dict[str, str]
    """Why trials have no version, by their names."""
    open: int
    """Trials that are not done yet; of those that the sweep has proposed so far."""
    importance: dict[str, float]
    """The share of the variance of the metric that each setting explains, 0..1; empty where too few were tried."""

    @property
    def best(self) -> Row:
        """The best configuration."""
        return self.rows[0]


def leaderboard(record: SweepRecord) -> Leaderboard:
    """Return the leaderboard of a sweep. Raises ModelStoreError if no trial has succeeded yet."""
    failed = {record.name_of(trial): trial.problem for trial in record.trials if trial.problem and not trial.version}
    rows = compared(record, ranked(record))
    if not rows:
        why = f"the first says: {next(iter(failed.values()))}" if failed else "none is done yet"
        raise ModelStoreError(f"no trial of the sweep {record.sweep.name} has succeeded: {why}")
    waiting = sum(not trial.is_done for trial in record.trials)
    return Leaderboard(record, rows, failed, waiting, _importance(record, rows))


def table_rows(board: Leaderboard) -> list[dict[str, Any]]:
    """Return a row a configuration for a table: rank, the settings that were varied, scores, cost."""
    return [_cells(board, rank, row) for rank, row in enumerate(board.rows, 1)]


def leaderboard_page(board: Leaderboard, cost: bytes, by_setting: bytes) -> bytes:
    """Return the page of a leaderboard with its two plots (`plots`), HTML with no other resources."""
    import yaml

    return render(
        "leaderboard.html",
        board=board,
        record=board.record,
        sweep=board.record.sweep,
        rows=table_rows(board),
        settings=yaml.safe_dump(as_config(board, board.best), sort_keys=False),
        cost=inline(cost),
        by_setting=inline(by_setting),
        sort_script=script("sort.js"),
    )


def setting_names(board: Leaderboard) -> list[str]:
    """Return the settings that differ between configurations."""
    names: dict[str, None] = {}
    for row in board.rows:
        names |= dict.fromkeys(row.values)
    return list(names)


def as_config(board: Leaderboard, row: Row) -> dict[str, Any]:
    """Return the settings of a configuration in the form of a run's configuration, for PIPELINE_CONFIG."""
    return {"ops": {"digit_classifier": {"config": {**board.record.sweep.settings, **row.values}}}}


def _cells(board: Leaderboard, rank: int, row: Row) -> dict[str, Any]:
    cells: dict[str, Any] = {
        "rank": rank,
        "configuration": f"{row.configuration:03d}" + ("" if row.values else " (no change)"),
    }
    for name in setting_names(board):
        value = row.values.get(name, board.record.sweep.usual(name))
        cells[name] = float(f"{value:.4g}") if isinstance(value, float) else json.dumps(value).strip('"')
    cells |= {"validation_accuracy": row.validation_accuracy, "spread": row.spread}
    if any(one.difference for one in board.rows):
        mean, low, high = row.difference or (None, None, None)
        cells |= {"difference": mean, "difference_low": low, "difference_high": high}
    return cells | {
        "validation_loss": row.validation_loss,
        "seeds": f"{len(row.trials)} of {row.planned}" if len(row.trials) < row.planned else str(row.planned),
        "seconds": row.seconds,
        "weights_mib": (row.trials[0].weights_bytes or 0) / MIB,
    }


def _importance(record: SweepRecord, rows: list[Row]) -> dict[str, float]:
    """fANOVA (Hutter et al. 2014, An Efficient Approach for Assessing Hyperparameter Importance), as Optuna has it."""
    varied = [name for name in record.sweep.space if len({json.dumps(row.values.get(name)) for row in rows}) > 1]
    if len(rows) < LEAST_FOR_IMPORTANCE or len({row.score for row in rows}) == 1 or not varied:
        return {}
    import optuna

    study = study_of(record, 0)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator, params=varied))
