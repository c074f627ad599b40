"""Training: throughput, time to 99.5% and final accuracy, beside the recipe that users copy.

    .venv/bin/python -m benchmarks.training --seeds 3                        # hours: every training to its end
    .venv/bin/python -m benchmarks.training --quick                          # minutes: throughput only
    .venv/bin/python -m benchmarks.training --presets quick --no-baseline    # one preset

Test accuracy is looked at after each epoch, outside the time that is measured; nothing is chosen by it. On the CPU, as
the recipe.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save

from benchmarks.mnist import PROJECT, add_data_option
from benchmarks.tables import print_table
from mnist_pipeline.ml.checkpoint import FILE_NAME
from mnist_pipeline.ml.data import split
from mnist_pipeline.ml.model import model_from_bytes, predict_logits
from mnist_pipeline.ml.records import EpochMetrics, Splits
from mnist_pipeline.ml.settings import SplitSettings, TrainingSettings
from mnist_pipeline.ml.training import train
from mnist_pipeline.task.dataset import no_images
from mnist_pipeline.task.known import known
from mnist_pipeline.task.sources import load_directory
from mnist_pipeline_tests.presets import PRESETS, preset_config

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


def preset(name: str) -> tuple[TrainingSettings, SplitSettings]:
    """The settings of presets/<name>.yaml; `default` has no file."""
    if name == "default":
        return TrainingSettings(), SplitSettings()
    config = preset_config(name)
    return TrainingSettings(**config["digit_classifier"]), SplitSettings(**config.get("processed_mnist_data", {}))


def report_progress(name: str, seed: int, epoch: int, epochs: int, now: Epoch) -> None:
    line = (
        f"{name}, seed {seed}: epoch {epoch}/{epochs} after {now.seconds:.0f} s, {now.samples_per_second:.0f} images/s"
    )
    print(f"{line}, test accuracy {now.test_accuracy:.2%}", file=sys.stderr, flush=True)


def run_preset(name: str, settings: TrainingSettings, splits: Splits) -> list[Epoch]:
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
            model = model_from_bytes(save(kept), settings, splits.spec)
            logits = predict_logits(model, splits.test.images, splits.spec)
            accuracy = (logits.argmax(1).numpy() == splits.test.labels).mean().item()
            samples += len(splits.train.labels)
            training += len(splits.train.labels) / metrics.images_per_second
            epochs.append(Epoch(reached - began - scoring, samples / training, accuracy))
            report_progress(name, settings.seed, metrics.epoch, settings.epochs, epochs[-1])
            scoring += time.perf_counter() - reached

        train(settings, splits, score, Path(folder))
    return epochs


def run_baseline(data: Path, seed: int, epochs: int) -> list[Epoch]:
    """Train as the tutorial does."""
    command = ["-m", "benchmarks.reference_training", "--data", str(data), "--seed", str(seed), "--epochs", str(epochs)]
    done = []
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, cwd=PROJECT) as process:
        assert process.stdout
        for line in process.stdout:
            now: dict[str, Any] = json.loads(line)
            done.append(Epoch(now["seconds"], now["train_samples_per_s"], now["test_accuracy"]))
            report_progress(BASELINE, seed, len(done), epochs, done[-1])
    if process.returncode:
        raise RuntimeError(f"the baseline ended with {process.returncode}")
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each kind")
    names = ["default", *sorted(file.stem for file in PRESETS.glob("*.yaml"))]
    parser.add_argument("--presets", nargs="*", choices=names, default=["default", "quick"])
    parser.add_argument("--no-baseline", action="store_true")
    parser.add_argument("--baseline-seeds", type=int, help="trainings of the baseline, which takes longest; as --seeds")
    parser.add_argument("--quick", action="store_true", help="one epoch of each: throughput only")
    arguments = parser.parse_args()
    dataset = load_directory(arguments.data, known("mnist"))
    recipes: dict[str, tuple[TrainingSettings, Splits]] = {}
    for name in arguments.presets:
        settings, split_settings = preset(name)
        recipes[name] = settings, split(dataset, no_images(dataset.spec), split_settings)
    runs: dict[str, list[list[Epoch]]] = {}
    baseline_seeds = arguments.seeds if arguments.baseline_seeds is None else arguments.baseline_seeds
    for seed in range(arguments.seeds):  # all kinds in turn, so that a noisy machine is noisy for all
        if not arguments.no_baseline and seed < baseline_seeds:
            done = run_baseline(arguments.data.resolve(), seed, 1 if arguments.quick else 30)
            runs.setdefault(BASELINE, []).append(done)
        for name, (settings, splits) in recipes.items():
            changes: dict[str, Any] = {"seed": seed, "device": "cpu"} | ({"epochs": 1} if arguments.quick else {})
            changed = TrainingSettings(**settings.model_dump() | changes)
            runs.setdefault(name, []).append(run_preset(name, changed, splits))
    results = {name: Result.of(trainings) for name, trainings in runs.items()}
    baseline = results.get(BASELINE)
    header = ["median of seeds (times better)", "images/s"]
    if not arguments.quick:
        header += [f"s to {GOAL:.1%} test", "s to the end", "mean test accuracy at the end", "each"]
    print_table(header, [row(name, result, baseline)[: len(header)] for name, result in results.items()])


class Result(NamedTuple):
    """Of the trainings of one kind: medians."""

    samples_per_second: float
    seconds_to_goal: float
    """Infinite if not reached."""
    seconds: float
    accuracies: list[float]

    @classmethod
    def of(cls, trainings: list[list[Epoch]]) -> "Result":
        to_goal = [next((e.seconds for e in epochs if e.test_accuracy >= GOAL), math.inf) for epochs in trainings]
        ends = [epochs[-1] for epochs in trainings]
        return cls(
            statistics.median(end.samples_per_second for end in ends),
            statistics.median(to_goal),
            statistics.median(end.seconds for end in ends),
            [end.test_accuracy for end in ends],
        )


def row(name: str, result: Result, baseline: Result | None) -> list[str]:
    other = baseline or result
    return [
        name,
        f"{result.samples_per_second:.0f} ({result.samples_per_second / other.samples_per_second:.1f})",
        "not reached"
        if math.isinf(result.seconds_to_goal)
        else f"{result.seconds_to_goal:.0f} ({other.seconds_to_goal / result.seconds_to_goal:.1f})",
        f"{result.seconds:.0f} ({other.seconds / result.seconds:.1f})",
        f"{statistics.mean(result.accuracies):.3%}",
        ", ".join(f"{accuracy:.2%}" for accuracy in result.accuracies),
    ]


if __name__ == "__main__":
    main()
