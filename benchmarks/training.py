"""Training: throughput, time to 99.5% and final accuracy, beside the recipe that users copy.

    .venv/bin/python -m benchmarks.training --seeds 3                        # hours: every training to its end
    .venv/bin/python -m benchmarks.training --quick                          # minutes: throughput only
    .venv/bin/python -m benchmarks.training --presets quick --no-baseline    # one preset

Test accuracy is looked at after each epoch, outside the time that is measured; nothing is chosen by it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from safetensors.torch import load_file, save

from benchmarks.mnist import PROJECT, add_data_option
from benchmarks.tables import print_table
from mnist_pipeline.ml.checkpoint import FILE_NAME
from mnist_pipeline.ml.data import no_images, split
from mnist_pipeline.ml.network import model_from_bytes, predict_logits
from mnist_pipeline.ml.records import EpochMetrics, Normalization, Splits
from mnist_pipeline.ml.settings import SplitSettings, TrainingSettings
from mnist_pipeline.ml.sources import load_directory
from mnist_pipeline.ml.training import train

GOAL = 0.995
BASELINE = "the recipe users copy"


class Epoch(NamedTuple):
    """Where a training stands."""

    seconds: float
    """Training and validation so far."""
    samples_per_second: float
    """Training alone, on average so far."""
    test_accuracy: float
    """Of the weights that would be kept if training ended now, 0..1."""


def preset(name: str) -> TrainingSettings:
    """The settings of presets/<name>.yaml; `default` has no file."""
    if name == "default":
        return TrainingSettings()
    config = yaml.safe_load((PROJECT / "presets" / f"{name}.yaml").read_text())
    return TrainingSettings(**config["ops"]["digit_classifier"]["config"])


def run_preset(settings: TrainingSettings, splits: Splits) -> list[Epoch]:
    """Train here."""
    epochs: list[Epoch] = []
    scoring = samples = training = 0.0
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()

        def score(metrics: EpochMetrics) -> None:
            nonlocal scoring, samples, training
            reached = time.perf_counter()
            [checkpoint] = Path(folder).rglob(FILE_NAME)
            kept = {name[5:]: tensor for name, tensor in load_file(checkpoint).items() if name.startswith("best/")}
            logits = predict_logits(model_from_bytes(save(kept), settings), splits.test.images, Normalization())
            accuracy = (logits.argmax(1).numpy() == splits.test.labels).mean().item()
            samples += len(splits.train.labels)
            training += len(splits.train.labels) / metrics.images_per_second
            epochs.append(Epoch(reached - began - scoring, samples / training, accuracy))
            print(metrics.epoch, *epochs[-1], metrics.validation_accuracy, file=sys.stderr, flush=True)
            scoring += time.perf_counter() - reached

        train(settings, splits, score, Path(folder))
    return epochs


def run_baseline(script: Path, data: Path, seed: int, epochs: int) -> list[Epoch]:
    """Train as the tutorial does."""
    command = [sys.executable, str(script), "--data", str(data), "--seed", str(seed), "--epochs", str(epochs)]
    done = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            now: dict[str, Any] = json.loads(line)
            done.append(Epoch(now["seconds"], now["train_samples_per_s"], now["test_accuracy"]))
            print("baseline", now, file=sys.stderr, flush=True)
    if process.returncode:
        raise RuntimeError(f"the baseline ended with {process.returncode}")
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each kind")
    parser.add_argument("--presets", nargs="*", default=["default", "quick", "accurate"])
    parser.add_argument("--baseline", type=Path, default=PROJECT.parent / "shared/baseline/reference_training.py")
    parser.add_argument("--no-baseline", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one epoch of each: throughput only")
    arguments = parser.parse_args()
    splits = split(load_directory(arguments.data), no_images(), SplitSettings())
    runs: dict[str, list[list[Epoch]]] = {}
    for seed in range(arguments.seeds):  # all kinds in turn, so that a noisy machine is noisy for all
        if not arguments.no_baseline:
            done = run_baseline(arguments.baseline, arguments.data, seed, 1 if arguments.quick else 30)
            runs.setdefault(BASELINE, []).append(done)
        for name in arguments.presets:
            changes: dict[str, Any] = {"seed": seed} | ({"epochs": 1} if arguments.quick else {})
            settings = TrainingSettings(**preset(name).model_dump() | changes)
            runs.setdefault(name, []).append(run_preset(settings, splits))
    print_table(
        ["median of seeds", "images/s", f"s to {GOAL:.1%} test", "s to the end", "test accuracy at the end", "each"],
        [row(name, trainings) for name, trainings in runs.items()],
    )


def row(name: str, trainings: list[list[Epoch]]) -> list[str]:
    to_goal = [next((e.seconds for e in epochs if e.test_accuracy >= GOAL), float("inf")) for epochs in trainings]
    ends = [epochs[-1] for epochs in trainings]
    reached = statistics.median(to_goal)
    return [
        name,
        f"{statistics.median(end.samples_per_second for end in ends):.0f}",
        "not reached" if reached == float("inf") else f"{reached:.0f}",
        f"{statistics.median(end.seconds for end in ends):.0f}",
        f"{statistics.median(end.test_accuracy for end in ends):.2%}",
        ", ".join(f"{end.test_accuracy:.2%}" for end in ends),
    ]


if __name__ == "__main__":
    main()
