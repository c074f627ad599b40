"""Two service processes under load on one store, while a deployer promotes another version every second.

    .venv/bin/python -m benchmarks.soak --seconds 600

Every answer must come from a version that was deployed at that moment, none may fail, memory must stay flat.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

import psutil

from benchmarks.load import Answered, multipart_request, run
from benchmarks.serving import digit_files
from mnist_pipeline.ml.data import no_images, split
from mnist_pipeline.ml.settings import SplitSettings, TrainingSettings
from mnist_pipeline.ml.training import train
from mnist_pipeline.stores import LocalModelStoreResource
from mnist_pipeline_tests.conftest import TINY, embedded_digits
from mnist_pipeline_tests.serve.service import deploy, save

RELOAD_SECONDS = 0.2
PROMOTION_SECONDS = 1.0
CLIENTS = 4
"""Of each service."""


class Promotion(NamedTuple):
    """Times as time.perf_counter() gives them."""

    version: str
    began: float
    done: float


class Report(NamedTuple):
    """What happened."""

    answers: int
    failures: int
    versions: int
    """How many different ones answered."""
    promotions: int
    latest: float
    """Seconds after which a version that was replaced still answered, at most."""
    memory_mib: list[list[float]]
    """Of each service over time."""


def soak(folder: Path, seconds: float, services: int = 2) -> Report:
    """Run it. The store and the models are made in `folder`."""
    store = LocalModelStoreResource(base_path=str(folder / "models"))
    settings = TrainingSettings(**TINY)
    trained = train(settings, split(embedded_digits(), no_images(), SplitSettings()))
    names = [save(store, trained, settings) for _ in range(3)]
    deploy(store, names[0], trained.weights)
    promotions = [Promotion(names[0], time.perf_counter(), time.perf_counter())]
    answers: list[Answered] = []
    failures = 0
    memory: list[list[float]] = [[] for _ in range(services)]
    done = Event()

    def promote() -> None:
        while not done.wait(PROMOTION_SECONDS):
            name = names[len(promotions) % len(names)]
            began = time.perf_counter()
            deploy(store, name, trained.weights)
            promotions.append(Promotion(name, began, time.perf_counter()))

    def watch(processes: list[psutil.Process]) -> None:
        while not done.wait(max(0.5, seconds / 100)):
            for samples, process in zip(memory, processes, strict=True):
                samples.append(process.memory_info().rss / 2**20)

    requests = [multipart_request("/predict", file) for file in digit_files(200)]

    def load(port: int) -> None:
        nonlocal failures
        failures += run(port, requests, CLIENTS, seconds, answers.append).failures

    with ExitStack() as stack:
        running = [stack.enter_context(service(store.base_path)) for _ in range(services)]
        loads = [Thread(target=load, args=(port,)) for port, _ in running]
        others = [Thread(target=promote), Thread(target=watch, args=([process for _, process in running],))]
        for thread in loads + others:
            thread.start()
        for thread in loads:
            thread.join()
        done.set()
        for thread in others:
            thread.join()
    by_model = [(json.loads(answer.body).get("model"), answer) for answer in answers]
    began = [promotion.began for promotion in promotions]
    latest = max(lag(model, answer, promotions, began) for model, answer in by_model if model)
    return Report(
        len(answers), failures, len({model for model, _ in by_model if model}), len(promotions) - 1, latest, memory
    )


def lag(model: str, answer: Answered, promotions: list[Promotion], began: list[float]) -> float:
    """How long before the request was sent the version had been replaced; 0 if it was deployed at that moment."""
    for position in range(bisect_right(began, answer.received) - 1, -1, -1):
        if promotions[position].version == model:
            replaced = promotions[position + 1].done if position + 1 < len(promotions) else answer.sent
            return max(0.0, answer.sent - replaced)
    raise AssertionError(f"{model} answered before it was ever deployed")


@contextmanager
def service(store: str) -> Iterator[tuple[int, psutil.Process]]:
    """A service process, its port once it is ready."""
    command = [sys.executable, "-m", "mnist_pipeline.serve", "--store", store, "--port", "0"]
    command += ["--reload-seconds", str(RELOAD_SECONDS)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        log = ""
        for line in process.stderr:
            log += line
            if found := re.search(r"http://127.0.0.1:(\d+)", line):
                break
        else:
            raise RuntimeError(log)
        Thread(target=process.stderr.read, daemon=True).start()  # so that its log does not fill the pipe
        try:
            yield int(found.group(1)), psutil.Process(process.pid)
        finally:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--services", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = soak(Path(folder), options.seconds, options.services)
    print(f"{report.answers} answers, {report.failures} failed, {report.promotions} promotions")
    print(f"a replaced version answered for {report.latest:.2f} s at most (reload interval {RELOAD_SECONDS} s)")
    for number, samples in enumerate(report.memory_mib):
        shown = [f"{samples[int(share * (len(samples) - 1))]:.0f}" for share in (0, 0.1, 0.25, 0.5, 0.75, 1)]
        print(f"memory of service {number}, MiB, at 0, 10, 25, 50, 75, 100 % of the time: {', '.join(shown)}")


if __name__ == "__main__":
    main()
