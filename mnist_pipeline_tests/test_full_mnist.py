"""All 70,000 images through the graph, with few epochs; the README has the figures of full trainings."""

import pytest

from mnist_pipeline.environment import Environment
from mnist_pipeline_tests.conftest import Pipeline, check_results, metadata


@pytest.mark.full_mnist
def test_one_epoch_on_everything(full_mnist_dir, tmp_path, instance):
    variables = {
        "STORAGE_ROOT": str(tmp_path),
        "MNIST_SOURCE": "directory",
        "MNIST_DIR": str(full_mnist_dir),
    }
    small = {"conv_channels": [8, 16, 32], "hidden_units": [64], "epochs": 1, "batch_size": 64}
    result = Pipeline(Environment.read(variables), instance).run(digit_classifier=small)
    assert {name for name, passed in check_results(result).items() if not passed} == set()
    processed = metadata(result, "processed_mnist_data")
    sizes = [processed[f"{name}_images"] for name in ("train", "validation", "test")]
    assert sizes == [48_000, 12_000, 10_000]
    assert metadata(result, "model_evaluation")["test_accuracy"] > 0.95
    assert metadata(result, "batch_digit_predictions")["images"] == 10_000
