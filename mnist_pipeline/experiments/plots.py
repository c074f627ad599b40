"""Plots of a sweep: each function returns a PNG."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mnist_pipeline.experiments.backtesting import Backtest
from mnist_pipeline.experiments.leaderboard import Leaderboard, setting_names
from mnist_pipeline.ml.plots import DPI, png
from mnist_pipeline.ml.records import EpochMetrics

LISTED = 12
"""The number of values of a setting that have room along an axis."""


def score_against_cost(board: Leaderboard) -> bytes:
    """Draw the metric of each configuration over the seconds of its training, with the spread over its seeds."""
    figure = Figure(figsize=(7, 4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for row in board.rows:
        best, plain = row is board.best, not row.values
        colour = "tab:green" if best else "tab:orange" if plain else "tab:blue"
        axes.errorbar(row.seconds, row.score, yerr=row.spread, fmt="o", color=colour, capsize=3)
        if best or plain:
            said = " (no change)" if plain else ""
            axes.annotate(f" {row.configuration:03d}{said}", (row.seconds, row.score), fontsize=8, va="bottom")
    axes.set(xlabel="seconds of a training", ylabel=_metric(board))
    return png(figure)


def score_by_setting(board: Leaderboard) -> bytes:
    """Draw the metric over each setting that was varied, and the importance of each."""
    names = setting_names(board)
    count = max(1, len(names) + bool(board.importance))  # where nothing was varied, one that is empty
    figure = Figure(figsize=(3.2 * count, 3.2), dpi=DPI, layout="constrained")
    grid = figure.subplots(1, count, squeeze=False)[0]
    for axes, name in zip(grid, names, strict=False):
        values = [row.values.get(name, board.record.sweep.usual(name)) for row in board.rows]
        axes.plot(_positions(axes, board, name, values), [row.score for row in board.rows], "o", alpha=0.7)
        axes.set(title=name)
    grid[0].set(ylabel=_metric(board))
    if board.importance:
        names = list(board.importance)[::-1]
        grid[-1].barh(names, [board.importance[name] for name in names], color="gray")
        grid[-1].set(title="importance (fANOVA)", xlim=(0, 1))
    return png(figure)


def compared_curves(histories: Mapping[str, Sequence[EpochMetrics]]) -> bytes:
    """Draw loss and accuracy on the validation images over the epochs, a line for each name."""
    figure = Figure(figsize=(9, 3), dpi=DPI, layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for name, history in histories.items():
        epochs = [metrics.epoch for metrics in history]
        loss.plot(epochs, [metrics.validation_loss for metrics in history], marker=".", label=name)
        accuracy.plot(epochs, [metrics.validation_accuracy for metrics in history], marker=".", label=name)
    loss.set(title="validation loss (nats)", xlabel="epoch", yscale="log")
    accuracy.set(title="validation accuracy", xlabel="epoch")
    for axes in (loss, accuracy):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    return png(figure)


def backtest_heat_map(found: Backtest, deployed: str | None) -> bytes:
    """Draw the accuracy of each version on each set of images; the colours are of each column, the best one darkest."""
    versions, columns = len(found.versions), len(found.columns)
    figure = Figure(figsize=(3.5 + 0.62 * columns, 2.2 + 0.34 * versions), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    shades = np.full(found.accuracies.shape, np.nan)
    for column, values in enumerate(found.accuracies.T):
        known = values[~np.isnan(values)]
        if len(known):
            low, width = known.min(), known.max() - known.min()
            shades[:, column] = (values - low) / width if width else np.where(np.isnan(values), np.nan, 0.5)
    axes.imshow(shades, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")  # no so dark that a number could not be read
    for (row, column), value in np.ndenumerate(found.accuracies):
        said = "" if np.isnan(value) else f"{value:.3f}"
        axes.text(column, row, said, ha="center", va="center", fontsize=7)
    names = [f"{name[-44:]}{'  (deployed)' if name == deployed else ''}" for name in found.versions]
    axes.set_yticks(range(versions), names, fontsize=7)
    titles = [f"{column.name.replace('$', chr(92) + '$')} ({column.images:,})" for column in found.columns]
    axes.set_xticks(range(columns), titles, fontsize=7, rotation=40, ha="right")
    return png(figure)


def _positions(axes: Any, board: Leaderboard, name: str, values: list[Any]) -> list[Any]:
    """The values along the axis: numbers as such, others by their order, with their names."""
    dimension = board.record.sweep.dimensions().get(name)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        if dimension and dimension.log:
            axes.set_xscale("log")
        return values
    texts = sorted({json.dumps(value).replace("$", r"\$") for value in values})
    axes.set_xticks(range(len(texts))[:: -(-len(texts) // LISTED)], texts[:: -(-len(texts) // LISTED)], rotation=30)
    return [texts.index(json.dumps(value).replace("$", r"\$")) for value in values]


def _metric(board: Leaderboard) -> str:
    return board.record.sweep.metric.replace("_", " ")
