"""A function in a process of its own: how long it took and the memory that it needed at most. For Linux."""

import multiprocessing
import re
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple


class Cost(NamedTuple):
    """Of one call."""

    seconds: float
    """Of the call alone, imports at the head of the function's module left out."""
    peak_mib: float
    """Largest resident set of the process, the interpreter and all libraries included."""
    result: Any


def measure(function: Callable[..., Any], *arguments: Any) -> Cost:
    """Raises RuntimeError if it failed."""
    context = multiprocessing.get_context("spawn")  # nothing is inherited that would count
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        cost = Cost(*receiver.recv())
    except EOFError:
        process.join()
        raise RuntimeError(f"{function.__name__} ended with {process.exitcode}") from None
    process.join()
    return cost


def _call(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    began = time.perf_counter()
    result = function(*arguments)
    seconds = time.perf_counter() - began
    sender.send((seconds, memory_mib("VmHWM"), result))


def memory_mib(field: str) -> float:
    """A field of /proc/self/status, which is of this process alone: VmHWM is the largest resident set.

    getrusage would tell the parent's, if that was larger when it started this one.
    """
    [kib] = re.findall(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(kib) / 1024
