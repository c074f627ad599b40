"""This service beside a bare Starlette endpoint, a plain FastAPI one, and LitServe, with the same model and clients.

    .venv/bin/python -m pip install -c constraints.txt -e '.[bench]'
    .venv/bin/python -m benchmarks.serving
    .venv/bin/python -m benchmarks.serving --before ../an-earlier-checkout --before-store its/storage/models

The load comes from wrk (Debian's package): one thread, one real digit as a PNG file a request. The rounds of the
servers are interleaved, so that a noisy machine is noisy for all; the median round is shown.
"""

import argparse
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.tables import print_table
from mnist_pipeline.environment import Environment
from mnist_pipeline.stores import store_from_environment
from mnist_pipeline_tests.task.examples import embedded_images, png

CLIENTS = (1, 8, 32, 128)
OURS = "this service"
SERVICE = ["-m", "mnist_pipeline.serve", "--store", "{store}", "--port", "{port}", "--threads", "{threads}"]
SERVERS = {
    OURS: SERVICE,
    "this service, two workers": [*SERVICE, "--workers", "2"],
    "bare Starlette": ["-m", "benchmarks.bare_starlette_server", "{store}", "{port}", "{threads}"],
    "plain FastAPI": ["-m", "benchmarks.plain_fastapi_server", "{store}", "{port}", "{threads}"],
    "LitServe": ["-m", "benchmarks.litserve_server", "{store}", "{port}", "{threads}"],
}
FORMS = ("plain FastAPI", "LitServe")
"""These take uploads of a form, the others the picture as the body."""

POST = """wrk.method = "POST"
wrk.headers["Content-Type"] = "{kind}"
local file = io.open("{body}", "rb")
wrk.body = file:read("*all")
file:close()
"""


class Result(NamedTuple):
    """Of one round."""

    per_second: float
    p50: float
    """Milliseconds."""
    p99: float
    failed: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5, help="of one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of a forward pass, in all")
    parser.add_argument("--before", type=Path, help="an earlier checkout of this project, to run beside it")
    parser.add_argument("--before-store", help="its models")
    parser.add_argument("--only", nargs="+", default=list(SERVERS), choices=SERVERS)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("there is no wrk: apt-get install wrk")
    environment = Environment.read(os.environ)
    store = environment.model_address()
    if store_from_environment(environment).production() is None:
        raise SystemExit("no model is deployed: `make run` first")
    servers = {name: (SERVERS[name], store, Path.cwd()) for name in options.only}
    if options.before:
        servers["before"] = (SERVICE, str(Path(options.before_store).resolve()), options.before.resolve())
    results: dict[tuple[str, int], list[Result]] = {}
    memory: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scripts = {False: script(folder, form=False), True: script(folder, form=True)}
        for _ in range(options.rounds):
            for title, (command, models, root) in servers.items():
                post = scripts[title in FORMS]
                with server(command, models, options.threads, folder / "log", root) as (port, process):
                    wrk(port, post, 8, 2)  # warm
                    for clients in CLIENTS:
                        results.setdefault((title, clients), []).append(wrk(port, post, clients, options.seconds))
                    memory.setdefault(title, []).append(resident(process))
    print_table(
        ["clients", "server", "requests/s", "ratio", "p50 ms", "p99 ms", "failed"], rows(results, list(servers))
    )
    print()
    table = [[title, f"{statistics.median(mib):.0f}"] for title, mib in memory.items()]
    print_table(["server", "MiB after the load, all its processes"], table)


def script(folder: Path, *, form: bool) -> Path:
    """A script for wrk that sends a real digit, as it is or as the file of a form."""
    [file], kind = digit_files(1), "image/png"
    if form:
        name = 'Content-Disposition: form-data; name="image"; filename="a.png"'
        head = f"--digit\r\n{name}\r\nContent-Type: image/png\r\n\r\n"
        file, kind = head.encode() + file + b"\r\n--digit--\r\n", "multipart/form-data; boundary=digit"
    body, path = folder / f"body{form}", folder / f"post{form}.lua"
    body.write_bytes(file)
    path.write_text(POST.format(kind=kind, body=body))
    return path


def wrk(port: int, post: Path, clients: int, seconds: int) -> Result:
    command = [
        "wrk",
        "-t1",
        f"-c{clients}",
        f"-d{seconds}s",
        "--latency",
        "-s",
        str(post),
        f"http://127.0.0.1:{port}/predict",
    ]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    cuts = {share: milliseconds(*re.findall(rf"{share}%\s+([\d.]+)(us|ms|s)\b", told)[0]) for share in (50, 99)}
    failed = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", told)))
    [per_second] = re.findall(r"Requests/sec:\s+([\d.]+)", told)
    return Result(float(per_second), cuts[50], cuts[99], failed)


def milliseconds(number: str, unit: str) -> float:
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


def resident(process: psutil.Process) -> float:
    """MiB of a process and of those that it started."""
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) / 2**20


def digit_files(count: int) -> list[bytes]:
    """Real digits as PNG files."""
    return [png(image) for image in embedded_images().test.images[:count]]


@contextmanager
def server(command: list[str], store: str, threads: int, log: Path, root: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Port and process of a server in a process of its own, once it listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    filled = [part.format(store=store, port=port, threads=threads) for part in command]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *filled],
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root)},
        )
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
            time.sleep(3)  # LitServe and several workers listen before they are ready
            yield port, psutil.Process(process.pid)
        finally:
            os.killpg(process.pid, 9)
            process.wait()


def rows(results: dict[tuple[str, int], list[Result]], servers: list[str]) -> Iterator[list[object]]:
    for clients in CLIENTS:
        first = statistics.median(result.per_second for result in results[servers[0], clients])
        for name in servers:
            rounds = results[name, clients]
            rate, p50, p99 = (statistics.median(values) for values in list(zip(*rounds, strict=True))[:3])
            yield [
                *(clients, name, f"{rate:.0f}", f"{first / rate:.2f}", f"{p50:.2f}", f"{p99:.1f}"),
                sum(result.failed for result in rounds),
            ]


if __name__ == "__main__":
    main()
