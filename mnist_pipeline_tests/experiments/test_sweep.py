"""Sweeps as people write them down."""

from itertools import islice
from pathlib import Path

import pytest

from mnist_pipeline.experiments.sweep import SweepInvalid, parse_sweep, read_sweep
from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline_tests.experiments.conftest import SPACE, a_sweep

SWEEPS = Path(__file__).parents[2] / "sweeps"


@pytest.mark.parametrize("file", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_sweeps_of_the_project_are_valid_and_bear_the_names_of_their_files(file):
    assert read_sweep(file).name == file.stem


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"space": {}}, "space is empty"),
        ({"space": {"learning_rat": {"choices": [1]}}}, "space: there is no setting 'learning_rat', but batch_size"),
        ({"settings": {"epoch": 4}}, "settings: there is no setting 'epoch'"),
        ({"space": {"seed": {"choices": [1, 2]}}}, "space: the seeds of trials are set by `seeds`"),
        ({"space": {"epochs": {"choices": [0, 2]}}}, "epochs: Input should be greater than or equal to 1"),
        ({"space": {"learning_rate": {"low": 0.1, "high": 20}}}, "learning_rate: Input should be less than or equal"),
        ({"space": {"learning_rate": {"low": 0.1, "high": 0.01}}}, "low must be less than high, not 0.1 and 0.01"),
        ({"space": {"learning_rate": {"low": 0, "high": 1, "log": True}}}, "log needs a low above 0"),
        ({"space": {"learning_rate": {"low": 0.1}}}, "give choices, or low and high"),
        ({"space": {"epochs": {"choices": [1], "low": 1}}}, "give choices, or low and high, not both"),
        ({"space": {"epochs": {"choices": []}}}, "choices: List should have at least 1 item"),
        ({"space": {"epochs": {"choices": [2, 2]}}}, "choices has one value twice"),
        ({"space": {"epochs": {"choices": [1.5]}}}, "epochs: Input should be a valid integer"),
        ({"space": {"epochs": [1, 2]}}, "space.epochs"),
        ({"space": {"learning_rate": {"low": 0.1, "high": 10**400}}}, "high: "),
        ({"space": {"learning_rate": {"low": 0.1, "high": float("inf")}}}, "high: "),
        ({"space": {"conv_dropout": {"low": 0.1, "high": 0.2, "step": float("inf")}}}, "step: "),
        ({"space": {"batch_size": {"low": 32.0, "high": 64}}}, "it is a whole number, and so are low, high and step"),
        ({"space": {"batch_size": {"low": 32, "high": 33, "step": 0.5}}}, "it is a whole number"),
        (
            {
                "method": "grid",
                "configurations": None,
                "space": {"learning_rate": {"low": 0.1, "high": 1, "step": 1e-8}},
            },
            "trials, more than 10,000",
        ),
        ({"seeds": list(range(100)), "configurations": 200}, "that would be 20,000 trials"),
        (
            {"settings": {"momentum": 0.5}, "space": {"optimizer": {"choices": ["sgd"]}}},
            "without a change (or set baseline: false): momentum has an effect only with",
        ),
        (
            {"space": {"optimizer": {"choices": ["sgd", "adam"]}, "momentum": {"choices": [0.5]}}},
            "with optimizer='adam', momentum=0.5: momentum has an effect only with optimizer='sgd'",
        ),
        ({"settings": {"learning_rate": 0.1}}, "learning_rate is in settings and in space"),
        ({"configurations": None}, "method 'tpe' needs configurations"),
        ({"configurations": 0}, "configurations: Input should be greater than or equal to 1"),
        ({"method": "bayes"}, "method: Input should be 'grid', 'random', 'tpe' or 'best'"),
        ({"method": "grid"}, "space.learning_rate: a grid needs choices, or a step"),
        ({"method": "grid", "search_seed": 1, "space": {"epochs": {"choices": [1]}}}, "search_seed has an effect only"),
        ({"method": "best"}, "method 'best' needs best_of"),
        ({"best_of": "other"}, "best_of has an effect only with method='best'"),
        ({"seeds": []}, "seeds: List should have at least 1 item"),
        ({"seeds": [1, 1]}, "seeds has one twice"),
        ({"seeds": [-1]}, "seeds must be in 0..2147483647"),
        ({"name": "../x"}, "name: String should match pattern"),
        ({"metric": "test_accuracy"}, "metric: Input should be 'validation_accuracy' or 'validation_loss'"),
        ({"trials": 3}, "trials: Extra inputs are not permitted"),
    ],
    ids=str,
)
def test_what_cannot_be_carried_out_is_refused_with_the_name_and_what_is_allowed(wrong, said):
    with pytest.raises(SweepInvalid) as caught:
        a_sweep(**wrong)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["- a", "a: [", "", "\x00", "method: a\nmethod: b", "space: {epochs: {low: 1}, epochs: {}}"]
)
def test_what_is_no_sweep_is_refused_with_the_name_of_the_file(tmp_path, content):
    file = tmp_path / "some.yaml"
    file.write_text(content)
    with pytest.raises(SweepInvalid, match=r"some\.yaml"):
        read_sweep(file)
    with pytest.raises(SweepInvalid, match=r"none\.yaml cannot be read"):
        read_sweep(tmp_path / "none.yaml")


def test_a_trial_has_the_shared_settings_its_own_values_and_its_seed():
    sweep = a_sweep(settings={"epochs": 3})
    found = sweep.training_settings({"learning_rate": 0.01, "batch_size": 32}, 7)
    assert found == TrainingSettings(epochs=3, learning_rate=0.01, batch_size=32, seed=7)


def test_a_range_with_a_step_and_whole_numbers_have_their_values():
    sweep = parse_sweep(
        {
            "name": "x",
            "method": "grid",
            "space": {
                "conv_dropout": {"low": 0.0, "high": 0.3, "step": 0.1},
                "epochs": {"low": 1, "high": 3},
                "hidden_units": {"choices": [[32], [64, 32]]},
            },
        },
        "",
    )
    grid = list(sweep.grid())
    assert len(grid) == 4 * 3 * 2
    assert sorted({one["conv_dropout"] for one in grid}) == [0, 0.1, 0.2, 0.3]
    assert {one["epochs"] for one in grid} == {1, 2, 3}
    assert [64, 32] in [one["hidden_units"] for one in grid]


def test_a_space_of_too_many_combinations_is_refused_before_they_are_made():
    many = {"choices": [n / 1000 for n in range(1, 400)]}
    with pytest.raises(SweepInvalid, match="combinations of choices and ends, more than 10,000"):
        a_sweep(space=SPACE | {"conv_dropout": many, "hidden_dropout": many})


def test_a_grid_of_very_many_is_not_made_to_take_a_few():
    step = {"low": 0.1, "high": 1, "step": 1e-7}
    sweep = a_sweep(method="grid", configurations=3, space={"learning_rate": step})
    assert [values["learning_rate"] for values in islice(sweep.grid(), 2)] == [0.1, 0.1000001]
