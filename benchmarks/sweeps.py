"""What orchestration costs a trial: the same search by `make sweep`, by the daemon, and by Optuna alone.

Some minutes on the embedded digits:

    .venv/bin/python -m benchmarks.sweeps --trials 20 --epochs 5

All three train with the same function on the same splits. Optuna alone keeps nothing but its study, in memory: no
version, no checkpoint, no record; whatever that costs is in the difference.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import yaml

from benchmarks.mnist import PROJECT
from benchmarks.tables import print_table
from mnist_pipeline.experiments.sweep import parse_sweep
from mnist_pipeline.experiments.trials import Sweeps
from mnist_pipeline.ml.data import split
from mnist_pipeline.ml.settings import SplitSettings, TrainingSettings
from mnist_pipeline.ml.training import train
from mnist_pipeline.stores import LocalModelStore
from mnist_pipeline.task.dataset import no_images
from mnist_pipeline_tests.live import OWN_VARIABLES, Deployment
from mnist_pipeline_tests.task.examples import embedded_images

LOW, HIGH = 0.001, 0.03


def optuna_alone(trials: int, epochs: int) -> tuple[float, list[float]]:
    """Seconds of the search in a fresh process' place, and of each training."""
    data = embedded_images()
    splits = split(data, no_images(data.spec), SplitSettings())
    seconds: list[float] = []

    def objective(trial: optuna.Trial) -> float:
        settings = TrainingSettings(epochs=epochs, learning_rate=trial.suggest_float("rate", LOW, HIGH, log=True))
        result = train(settings, splits)
        seconds.append(sum(metrics.seconds for metrics in result.history))
        return result.history[result.best_epoch - 1].validation_accuracy

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    began = time.perf_counter()
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=trials)
    return time.perf_counter() - began, seconds


def by_command(trials: int, epochs: int) -> tuple[float, list[float]]:
    """Seconds of `python -m mnist_pipeline sweep` from its first trial on, and of each training."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        (home / "dagster.yaml").write_bytes((PROJECT / "dagster.yaml").read_bytes())
        kept = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}
        variables = kept | {
            "DAGSTER_HOME": str(home),
            "STORAGE_ROOT": f"{folder}/storage",
            "DATASET_SOURCE": "sample",
            "PYTHONPATH": str(PROJECT),
        }
        file = Path(folder) / "some.yaml"
        file.write_text(yaml.safe_dump(sweep(trials, epochs)))
        command = [sys.executable, "-W", "ignore", "-m", "mnist_pipeline", "sweep", "--config", str(file)]
        process = subprocess.Popen(command, env=variables, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        began = 0.0
        for line in process.stdout:
            if line.startswith("trial ") and not began:
                began = time.perf_counter()  # the data is there
        if process.wait():
            raise RuntimeError("the sweep failed")
        ended = time.perf_counter()
        return ended - began, trained(f"{folder}/storage/models")


def by_daemon(trials: int, epochs: int) -> tuple[float, list[float]]:
    """Seconds from the start of a sweep until the daemon has ended its last trial, and of each training."""
    with tempfile.TemporaryDirectory() as folder:
        deployment = Deployment(Path(folder) / "deployment", DATASET_SOURCE="sample")
        deployment.start()
        try:
            deployment.wait_for(lambda: deployment.built("batch_digit_predictions"), "the first build", 600)
            deployment.settle()
            sweeps = Sweeps(LocalModelStore(base_path=f"{folder}/deployment/storage/models"))
            began = time.perf_counter()
            sweeps.begin(parse_sweep(sweep(trials, epochs) | {"name": "some"}, "the benchmark"))
            deployment.wait_for(lambda: sweeps.read("some").is_complete, "the sweep", 3600)
            return time.perf_counter() - began, trained(sweeps.store.address)
        finally:
            deployment.stop()


def sweep(trials: int, epochs: int) -> dict[str, Any]:
    """The search that all three make."""
    return {
        "method": "tpe",
        "configurations": trials,
        "baseline": False,
        "settings": {"epochs": epochs},
        "space": {"learning_rate": {"low": LOW, "high": HIGH, "log": True}},
    }


def trained(address: str) -> list[float]:
    record = Sweeps(LocalModelStore(base_path=address)).read("some")
    if not record.is_complete or any(trial.version is None for trial in record.trials):
        raise RuntimeError(f"not every trial has a version: {record}")
    return [trial.seconds or 0.0 for trial in record.trials]


WAYS: dict[str, tuple[str, Callable[[int, int], tuple[float, list[float]]]]] = {
    "optuna": ("Optuna alone, one process", optuna_alone),
    "command": ("`make sweep`, a run for each trial", by_command),
    "daemon": ("the daemon, a run for each trial", by_daemon),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    rows = []
    for way in options.ways:
        title, measure = WAYS[way]
        wall, trainings = measure(options.trials, options.epochs)
        beside = (wall - sum(trainings)) / len(trainings)
        rows.append([title, f"{wall:.0f} s", f"{fmean(trainings):.2f} s", f"{beside:.2f} s"])
        print(f"{title}: {wall:.0f} s", file=sys.stderr, flush=True)
    what = f"{options.trials} trials of {options.epochs} epochs"
    print_table([what, "all", "a training", "beside it, a trial"], rows)


if __name__ == "__main__":
    main()
