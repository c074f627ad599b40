"""This service beside a plain FastAPI endpoint and LitServe: the same model, machine, requests and clients.

    .venv/bin/python -m pip install -c constraints.txt -e '.[bench]'
    .venv/bin/python -m benchmarks.serving

The rounds of the three are interleaved, so that a noisy machine is noisy for all; the median round is shown.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.load import Result, multipart_request, run
from benchmarks.tables import print_table
from mnist_pipeline.environment import Environment
from mnist_pipeline.stores import store_from_environment
from mnist_pipeline_tests.task.examples import embedded_images, png

CLIENTS = (1, 8, 32, 128)
SERVERS = {
    "this service": ["-m", "mnist_pipeline.serve", "--store", "{store}", "--port", "{port}", "--threads", "{threads}"],
    "plain FastAPI": ["-m", "benchmarks.plain_fastapi_server", "{store}", "{port}", "{threads}"],
    "LitServe": ["-m", "benchmarks.litserve_server", "{store}", "{port}", "{threads}"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8, help="of one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of a forward pass, in all three")
    options = parser.parse_args()
    environment = Environment.read(os.environ)
    store = environment.model_address()
    if store_from_environment(environment).production() is None:
        raise SystemExit("no model is deployed: `make run` first")
    requests = [multipart_request("/predict", png) for png in digit_files(500)]
    results: dict[tuple[str, int], list[Result]] = {}
    with tempfile.TemporaryDirectory() as logs:
        for _ in range(options.rounds):
            for name, command in SERVERS.items():
                with server(command, store, options.threads, Path(logs) / "log") as port:
                    run(port, requests, 8, 2)  # warm
                    for clients in CLIENTS:
                        results.setdefault((name, clients), []).append(run(port, requests, clients, options.seconds))
    print_table(["clients", "server", "requests/s", "ratio", "p50 ms", "p95 ms", "p99 ms", "failed"], rows(results))


def digit_files(count: int) -> list[bytes]:
    """Real digits as PNG files."""
    return [png(image) for image in embedded_images().test.images[:count]]


@contextmanager
def server(command: list[str], store: str, threads: int, log: Path) -> Iterator[int]:
    """A server in a process of its own, once it listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    filled = [part.format(store=store, port=port, threads=threads) for part in command]
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, *filled], stdout=output, stderr=output, start_new_session=True)
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"{filled} does not listen:\n{log.read_text()}") from None
                    time.sleep(0.1)
            time.sleep(2)  # LitServe listens before its worker is ready
            yield port
        finally:
            os.killpg(process.pid, 9)
            process.wait()


def rows(results: dict[tuple[str, int], list[Result]]) -> Iterator[list[object]]:
    for clients in CLIENTS:
        ours = statistics.median(result.per_second for result in results["this service", clients])
        for name in SERVERS:
            rounds = results[name, clients]
            rate = statistics.median(result.per_second for result in rounds)
            cuts = [statistics.median(r.percentile(share) for r in rounds) for share in (50, 95, 99)]
            failed = sum(result.failures for result in rounds)
            yield [clients, name, f"{rate:.0f}", f"{rate / ours:.2f}", *(f"{cut:.1f}" for cut in cuts), failed]


if __name__ == "__main__":
    main()
