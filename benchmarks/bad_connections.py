"""The time of answers to one normal client, alone and beside connections that are up to no good.

    .venv/bin/python -m benchmarks.bad_connections

Each kind of them is kept up for the whole measurement: what the service closes is soon opened again.
"""

import argparse
import asyncio
import contextlib
import time
from multiprocessing import get_context

from benchmarks.load import Result, run
from benchmarks.serving import digit_files
from benchmarks.tables import print_table
from mnist_pipeline.environment import Environment
from mnist_pipeline_tests.serve.service import process

HEAD = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
REOPEN_SECONDS = 0.1
FIELD = b"X: " + b"x" * 1000 + b"\r\n"
KINDS = {
    "alone": (0, b"", b"", 0.0),
    "500 idle ones": (500, b"", b"", 0.0),
    "500 half headers, a byte a second": (500, HEAD[:-20], b"x", 1.0),
    "50 headers without end": (50, HEAD, FIELD * 10, 0.01),
    "500 bodies, a byte a second": (500, HEAD + b"Content-Length: 1000\r\n\r\n", b"x", 1.0),
}
"""How many connections, what each sends first, and what it sends then, every so many seconds."""


def misbehave(port: int, kind: str, seconds: float) -> int:
    """Keep connections of a kind up for so long; return how often one was closed."""
    return asyncio.run(_misbehave(port, *KINDS[kind], time.monotonic() + seconds))


async def _misbehave(port: int, count: int, first: bytes, then: bytes, every: float, end: float) -> int:
    closed = 0

    async def one() -> None:
        nonlocal closed
        while (left := end - time.monotonic()) > 0:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(first)
                while (left := end - time.monotonic()) > 0 and not reader.at_eof():
                    writer.write(then)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(1000), min(left, every or left))
                writer.close()
            closed += left > 0
            await asyncio.sleep(REOPEN_SECONDS)

    await asyncio.gather(*(one() for _ in range(count)))
    return closed


def measure(port: int, request: bytes, kind: str, seconds: float) -> tuple[Result, int]:
    """Of a normal client beside those of a kind; also how many of those were closed."""
    with get_context("spawn").Pool(1) as pool:
        others = pool.apply_async(misbehave, (port, kind, seconds + 4))
        time.sleep(3)  # until they are all there
        result = run(port, [request], clients=1, seconds=seconds)
        return result, others.get()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of each kind")
    parser.add_argument("--store", default=Environment().model_address(), help="the models (default: those of make)")
    options = parser.parse_args()
    [file] = digit_files(1)
    request = HEAD + f"Content-Length: {len(file)}\r\n\r\n".encode() + file
    rows = []
    with process("--store", options.store) as service:
        for kind in KINDS:
            result, closed = measure(int(service.url.rsplit(":", 1)[1]), request, kind, options.seconds)
            p50, p99 = (f"{result.percentile(share):.2f}" for share in (50, 99))
            rows.append([kind, f"{result.per_second:.0f}", p50, p99, result.failures, closed])
    print_table(["beside", "requests/s", "p50 ms", "p99 ms", "failed", "connections closed"], rows)


if __name__ == "__main__":
    main()
