"""Clients in a closed loop: each sends the next request when it has the answer to the last.

Requests are whole before the measurement, and answers are not decoded: the clients share the machine with the server.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Answered(NamedTuple):
    """One answer; times as time.perf_counter() gives them."""

    number: int
    """Of the request in the list."""
    sent: float
    received: float
    body: bytes


class Result(NamedTuple):
    """Of one run."""

    requests: int
    failures: int
    seconds: float
    latencies: np.ndarray
    """Seconds, one a request, sorted."""

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds

    def percentile(self, share: float) -> float:
        """In milliseconds."""
        return float(np.percentile(self.latencies, share)) * 1000


def multipart_request(path: str, file: bytes) -> bytes:
    """A whole HTTP request that uploads one PNG file."""
    boundary = "benchmark"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
    body = f"{head}Content-Type: image/png\r\n\r\n".encode() + file + f"\r\n--{boundary}--\r\n".encode()
    headers = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary={boundary}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return headers.encode() + body


def run(
    port: int,
    requests: Sequence[bytes],
    clients: int,
    seconds: float,
    answered: Callable[[Answered], None] = lambda answer: None,
) -> Result:
    """Send `requests` in turn for so long. Anything but a 200 counts as a failure."""
    return asyncio.run(_run(port, requests, clients, seconds, answered))


async def _run(
    port: int, requests: Sequence[bytes], clients: int, seconds: float, answered: Callable[[Answered], None]
) -> Result:
    began = time.perf_counter()
    latencies: list[float] = []
    failures = 0

    async def client(position: int) -> None:
        nonlocal failures
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (sent := time.perf_counter()) - began < seconds:
            number = position % len(requests)
            writer.write(requests[number])
            position += clients
            head = await reader.readuntil(b"\r\n\r\n")
            lower = head.lower()
            length = int(lower.split(b"content-length: ")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            received = time.perf_counter()
            latencies.append(received - sent)
            answered(Answered(number, sent, received, body))
            if not head.startswith(b"HTTP/1.1 200"):
                failures += 1
        writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return Result(len(latencies), failures, time.perf_counter() - began, np.sort(latencies))
