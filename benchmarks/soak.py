"""Two service processes under load on one store, while a deployer promotes another version every second.

    .venv/bin/python -m benchmarks.soak --seconds 600

Every answer must come from a version that was deployed at that moment, none may fail, memory must stay flat.
"""

import argparse
import json
import tempfile
import time
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import NamedTuple

import numpy as np
import psutil

from benchmarks.load import Answered, multipart_request, run
from benchmarks.serving import digit_files
from mnist_pipeline.ml.data import split
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.ml.settings import SplitSettings, TrainingSettings
from mnist_pipeline.ml.training import train
from mnist_pipeline.stores import LocalModelStore
from mnist_pipeline.task.dataset import no_images
from mnist_pipeline.task.known.mnist import MNIST
from mnist_pipeline_tests.serve.service import process
from mnist_pipeline_tests.task.examples import TINY, embedded_images
from mnist_pipeline_tests.versions import deploy, save

RELOAD_SECONDS = 0.2
PROMOTION_SECONDS = 1.0
CLIENTS = 4
"""Of each service."""

MODELS = 3
IMAGES = 200
ROUNDING = 1e-4


class Promotion(NamedTuple):
    """Times as time.perf_counter() gives them."""

    version: str
    began: float
    done: float


class Report(NamedTuple):
    """What happened."""

    answers: int
    failures: int
    wrong: int
    """Answers that the model they name does not give."""
    versions: int
    """How many different ones answered."""
    promotions: int
    latest: float
    """Seconds after which a version that was replaced still answered, at most."""
    memory_mib: list[list[float]]
    """Of each service over time."""


def soak(folder: Path, seconds: float, services: int = 2) -> Report:
    """Run it. The store and the models are made in `folder`."""
    store = LocalModelStore(base_path=str(folder / "models"))
    splits = split(embedded_images(), no_images(MNIST), SplitSettings())
    images = embedded_images().test.images[:IMAGES]
    models = []  # of different weights, so that an answer by another model than it says is seen
    for seed in range(MODELS):
        settings = TrainingSettings(**TINY | {"epochs": 1, "seed": seed})
        models.append((settings, train(settings, splits)))
    confidences: dict[str, np.ndarray] = {}
    promotions: list[Promotion] = []

    def promote_another() -> None:
        settings, trained = models[len(promotions) % MODELS]
        name = save(store, trained, settings).name  # a version of its own: none is deployed twice
        confidences[name] = Predictor(*store.load_onnx(name)).predict(images).max(1)
        began = time.perf_counter()
        deploy(store, name, trained.weights)
        promotions.append(Promotion(name, began, time.perf_counter()))

    promote_another()
    answers: list[Answered] = []
    memory: list[list[float]] = [[] for _ in range(services)]
    done = Event()

    def promote() -> None:
        while not done.wait(PROMOTION_SECONDS):
            promote_another()

    def watch(processes: list[psutil.Process]) -> None:
        while not done.wait(max(0.5, seconds / 100)):
            for samples, watched in zip(memory, processes, strict=True):
                samples.append(watched.memory_info().rss / 2**20)

    requests = [multipart_request("/predict", file) for file in digit_files(IMAGES)]
    with ExitStack() as stack:
        options = ("--store", store.base_path, "--reload-seconds", str(RELOAD_SECONDS))
        running = [stack.enter_context(process(*options)) for _ in range(services)]
        threads = stack.enter_context(ThreadPoolExecutor(services + 2))
        others = [threads.submit(promote), threads.submit(watch, [psutil.Process(one.process.pid) for one in running])]
        ports = [int(one.url.rsplit(":", 1)[1]) for one in running]
        loads = [threads.submit(run, port, requests, CLIENTS, seconds, answers.append) for port in ports]
        try:
            failures = sum(load.result().failures for load in loads)  # a connection that breaks is raised
        finally:
            done.set()
        for other in others:
            other.result()
    began = [promotion.began for promotion in promotions]
    seen, wrong, latest = set(), 0, 0.0
    for answer in answers:
        content = json.loads(answer.body)
        if model := content.get("model"):
            seen.add(model)
            [prediction] = content["predictions"]
            wrong += abs(prediction["confidence"] - confidences[model][answer.number]) > ROUNDING
            latest = max(latest, lag(model, answer, promotions, began))
    return Report(len(answers), failures, wrong, len(seen), len(promotions) - 1, latest, memory)


def lag(model: str, answer: Answered, promotions: list[Promotion], began: list[float]) -> float:
    """How long before the request was sent the version had been replaced; 0 if it was deployed at that moment."""
    for position in range(bisect_right(began, answer.received) - 1, -1, -1):
        if promotions[position].version == model:
            replaced = promotions[position + 1].done if position + 1 < len(promotions) else answer.sent
            return max(0.0, answer.sent - replaced)
    raise AssertionError(f"{model} answered before it was ever deployed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--services", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = soak(Path(folder), options.seconds, options.services)
    print(f"{report.answers} answers, {report.failures} failed, {report.wrong} by another model than they name")
    print(f"{report.promotions} promotions, {report.versions} versions answered")
    print(f"a replaced version answered for {report.latest:.2f} s at most (reload interval {RELOAD_SECONDS} s)")
    for number, samples in enumerate(report.memory_mib):
        shown = [f"{samples[int(share * (len(samples) - 1))]:.0f}" for share in (0, 0.1, 0.25, 0.5, 0.75, 1)]
        print(f"memory of service {number}, MiB, at 0, 10, 25, 50, 75, 100 % of the time: {', '.join(shown)}")


if __name__ == "__main__":
    main()
