"""Calibration before and after the temperature that is fitted to the validation images, on the test images.

.venv/bin/python -m benchmarks.calibration                                   # the embedded sample, 20 epochs
.venv/bin/python -m benchmarks.calibration --full-data $MNIST_DIR --epochs 2
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks.mnist import folder
from benchmarks.tables import print_table
from mnist_pipeline.ml.data import split
from mnist_pipeline.ml.evaluation import cross_entropy, expected_calibration_error
from mnist_pipeline.ml.export import export
from mnist_pipeline.ml.model import model_from_bytes, predict_logits
from mnist_pipeline.ml.settings import EvaluationSettings, SplitSettings, TrainingSettings
from mnist_pipeline.ml.training import train
from mnist_pipeline.task.dataset import LabelledImages, no_images
from mnist_pipeline.task.known import known
from mnist_pipeline.task.known.mnist import load_sample
from mnist_pipeline.task.sources import load_directory


def scores(probabilities: np.ndarray, test: LabelledImages) -> tuple[float, float]:
    """Expected calibration error and cross-entropy."""
    bins, correct = EvaluationSettings().calibration_bins, probabilities.argmax(1) == test.labels
    return expected_calibration_error(probabilities.max(1), correct, bins), cross_entropy(probabilities, test.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full-data", type=folder, help="folder of the full MNIST; without: the sample")
    parser.add_argument("--epochs", type=int, default=TrainingSettings().epochs)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    dataset = load_directory(Path(options.full_data), known("mnist")) if options.full_data else load_sample("benchmark")
    splits = split(dataset, no_images(dataset.spec), SplitSettings())
    rows = []
    for seed in range(options.seeds):
        settings = TrainingSettings(seed=seed, epochs=options.epochs)
        weights = train(settings, splits).weights
        exported = export(weights, settings, splits)
        network = model_from_bytes(weights, settings, splits.spec)
        logits = predict_logits(network, splits.test.images, splits.spec)
        (error, loss), (error_after, loss_after) = (
            scores((logits / temperature).softmax(1).numpy(), splits.test) for temperature in (1, exported.temperature)
        )
        accuracy = (logits.argmax(1).numpy() == splits.test.labels).mean()
        temperature = f"{exported.temperature:.3f}"
        rows.append(
            [
                seed,
                f"{accuracy:.4f}",
                temperature,
                f"{error:.4f}",
                f"{error_after:.4f}",
                f"{loss:.4f}",
                f"{loss_after:.4f}",
            ]
        )
    columns = ["seed", "test accuracy", "temperature", "ECE at 1", "ECE", "loss at 1", "loss"]
    print_table(columns, rows)


if __name__ == "__main__":
    main()
