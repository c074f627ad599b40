"""The ranking of a sweep by hand-computed numbers."""

import pytest
from scipy import stats

from mnist_pipeline.experiments.leaderboard import as_config, leaderboard, leaderboard_page, table_rows
from mnist_pipeline.experiments.plots import score_against_cost, score_by_setting
from mnist_pipeline.experiments.trials import Sweeps
from mnist_pipeline.stores import MemoryModelStore, ModelStoreError
from mnist_pipeline_tests.experiments.conftest import a_sweep

GRID = {"method": "grid", "configurations": None, "space": {"batch_size": {"choices": [16, 32]}}, "seeds": [0, 1, 2]}
SCORES = {0: (0.90, 0.91, 0.92), 1: (0.96, 0.90, 0.98), 2: (0.94, 0.95, 0.96)}


@pytest.fixture
def sweeps(tmp_path) -> Sweeps:
    return Sweeps(MemoryModelStore(bucket=str(tmp_path)))


def finished(sweeps, finish, scores=SCORES, **fields):
    record = sweeps.begin(a_sweep(**GRID | fields))
    for trial in record.trials:
        if trial.configuration in scores:
            finish(sweeps, "some", trial, scores[trial.configuration][trial.seed], seconds=trial.configuration + 1.0)
    return sweeps.read("some")


def test_the_best_is_the_one_with_the_best_mean_of_its_seeds(sweeps, finish):
    board = leaderboard(finished(sweeps, finish))
    assert [row.configuration for row in board.rows] == [2, 1, 0]
    by_number = {row.configuration: row for row in board.rows}
    for number, scores in SCORES.items():
        row = by_number[number]
        assert row.score == pytest.approx(sum(scores) / 3)
        assert row.spread == pytest.approx(stats.tstd(scores))
        assert row.seconds == number + 1
    welch = stats.ttest_ind(SCORES[2], SCORES[0], equal_var=False).confidence_interval(0.95)
    assert by_number[2].difference == pytest.approx((0.04, welch.low, welch.high))
    assert by_number[0].difference is None
    assert board.best.best_trial.seed == 2


def test_the_metric_of_the_sweep_decides(sweeps, finish):
    record = finished(sweeps, finish, metric="validation_loss")
    board = leaderboard(record)
    assert board.best.score == min(row.score for row in board.rows)
    assert board.best.validation_loss == board.best.score


def test_equal_means_are_ranked_by_their_loss_and_nothing_is_divided_by_nothing(sweeps, finish):
    same = dict.fromkeys(range(3), (0.9, 0.9, 0.9))
    board = leaderboard(finished(sweeps, finish, same))
    assert [row.difference for row in board.rows if row.values] == [None, None]
    assert board.importance == {}
    assert score_against_cost(board).startswith(b"\x89PNG")


def test_what_failed_and_what_is_missing_is_said(sweeps, finish):
    record = sweeps.begin(a_sweep(**GRID))
    with pytest.raises(ModelStoreError, match="no trial of the sweep some has succeeded: none is done yet"):
        leaderboard(record)
    finish(sweeps, "some", record.trials[0])
    with pytest.raises(ModelStoreError, match="the first says: the loss diverged"):
        leaderboard(sweeps.read("some"))
    finish(sweeps, "some", record.trials[1], 0.5)
    board = leaderboard(sweeps.read("some"))
    assert board.failed == {"some/000-s0": "the loss diverged"}
    assert board.open == 7
    [row] = table_rows(board)
    assert (row["seeds"], row["spread"], row["configuration"]) == ("1 of 3", None, "000 (no change)")


def test_the_settings_of_the_best_are_a_configuration_of_runs(sweeps, finish):
    board = leaderboard(finished(sweeps, finish, settings={"epochs": 4}))
    config = as_config(board, board.rows[0])["ops"]["digit_classifier"]["config"]
    assert config == {"epochs": 4, **board.rows[0].values}


def test_importance_tells_what_mattered(sweeps, finish):
    space = {"batch_size": {"choices": [16, 32, 64, 128]}, "conv_dropout": {"choices": [0.0, 0.1, 0.2, 0.3]}}
    record = sweeps.begin(a_sweep(method="grid", configurations=None, space=space, baseline=False))
    for trial in record.trials:
        finish(sweeps, "some", trial, 0.9 - trial.values["batch_size"] / 1000 + trial.values["conv_dropout"] / 1000)
    board = leaderboard(sweeps.read("some"))
    assert board.importance["batch_size"] > 0.9
    assert sum(board.importance.values()) == pytest.approx(1)
    assert score_by_setting(board).startswith(b"\x89PNG")


def test_a_sweep_in_which_only_no_change_succeeded_has_a_page(sweeps, finish):
    board = leaderboard(
        finished(sweeps, finish, {0: SCORES[0]}, space={"initial_weights": {"choices": ["/a/$x_{$/b"]}})
    )
    assert score_by_setting(board).startswith(b"\x89PNG")
    assert b"no change" in leaderboard_page(board, b"", score_by_setting(board))


def test_dollars_in_values_are_no_formula(sweeps, finish):
    record = finished(sweeps, finish, space={"initial_weights": {"choices": ["/a/$x_{$/b", "/c"]}})
    assert score_by_setting(leaderboard(record)).startswith(b"\x89PNG")
