"""The preset `quick` keeps its promises."""

import pytest

from mnist_pipeline.environment import Environment
from mnist_pipeline_tests.conftest import Pipeline, check_results, metadata
from mnist_pipeline_tests.presets import preset_config
from mnist_pipeline_tests.task.examples import variables_of


def run_quick(variables, instance):
    """With the gate as it is by default."""
    pipeline = Pipeline(Environment.read(variables), instance)
    return pipeline.run(digit_classifier=preset_config("quick")["digit_classifier"], production_digit_classifier={})


def test_quick_deploys_a_model_of_the_sample(tmp_path, instance):
    result = run_quick({"STORAGE_ROOT": str(tmp_path), "DATASET_SOURCE": "sample"}, instance)
    assert metadata(result, "production_digit_classifier")["outcome"] == "promoted"
    assert metadata(result, "batch_digit_predictions")["images"] == 1000


@pytest.mark.full_mnist
def test_quick_on_everything(full_mnist_dir, tmp_path, instance):
    variables = {
        "STORAGE_ROOT": str(tmp_path),
        **variables_of(full_mnist_dir),
    }
    result = run_quick(variables, instance)
    assert {name for name, passed in check_results(result).items() if not passed} == set()
    processed = metadata(result, "processed_mnist_data")
    sizes = [processed[f"{name}_images"] for name in ("train", "validation", "test")]
    assert sizes == [48_000, 12_000, 10_000]
    assert metadata(result, "model_evaluation")["test_accuracy"] > 0.985
    assert metadata(result, "batch_digit_predictions")["images"] == 10_000
