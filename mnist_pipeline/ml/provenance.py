"""The circumstances of a training: code, packages and machine, and the differences between two of them."""

import hashlib
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import psutil

from mnist_pipeline.ml.manifest import Provenance

PROJECT = Path(__file__).resolve().parents[2]
GIT_SECONDS = 10
GIB, MIB = 2**30, 2**20

HARDWARE = ("processor", "instructions", "cores", "threads", "device", "gpu", "precision")
"""The fields that weights may hang on, of the machine."""

CPU_INFO = Path("/proc/cpuinfo")
"""The file in which Linux names the processor."""


def provenance(device: str, precision: str, seconds: float, initial_weights: str | None = None) -> Provenance:
    """Return the circumstances of a training that ended now in this process.

    `device` is cpu, cuda or mps, `precision` float32 or bfloat16, `seconds` what its epochs took, `initial_weights` the
    file that it began with. Raises OSError if that file is gone.
    """
    import torch  # those who only compare two records need none

    commit, changed = _git()
    return Provenance(
        git_commit=commit,
        uncommitted_changes=changed,
        python=platform.python_version(),
        packages=packages(),
        processor=_processor(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        threads=torch.get_num_threads(),
        device=device,
        precision=precision,
        gpu=torch.cuda.get_device_name() if device == "cuda" else None,
        memory_gib=round(psutil.virtual_memory().total / GIB, 1),
        seconds=seconds,
        peak_memory_mib=round(peak_memory() / MIB, 1),
        initial_weights_sha256=hashlib.sha256(Path(initial_weights).read_bytes()).hexdigest()
        if initial_weights
        else None,
    )


def packages() -> dict[str, str]:
    """Return the version of each installed package by its name, in their order."""
    found = {package.name.lower().replace("_", "-"): package.version for package in distributions() if package.name}
    return dict(sorted(found.items()))


def peak_memory() -> int:
    """Return the most memory that this process took so far, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # macOS counts bytes, Linux KiB


def differences(then: Provenance, now: Provenance) -> dict[str, list[str]]:
    """Return in words what differs in what the weights may hang on, by its kind: commit, packages or hardware.

    What was not recorded then counts as different, since nobody knows. Memory and time make no difference.
    """
    found = {
        "commit": list(_differing(then, now, "git_commit", "uncommitted_changes")),
        "packages": list(_packages_differing(then, now)),
        "hardware": list(_differing(then, now, *HARDWARE)),
    }
    if then.uncommitted_changes and now.uncommitted_changes:
        found["commit"].append("there were uncommitted changes, and there are")
    return {kind: words for kind, words in found.items() if words}


def _differing(then: Provenance, now: Provenance, *names: str) -> Iterator[str]:
    for name in names:
        before, after = getattr(then, name), getattr(now, name)
        if before != after:
            yield f"{name.replace('_', ' ')} {before} then, {after} now"


def _packages_differing(then: Provenance, now: Provenance) -> Iterator[str]:
    yield from _differing(then, now, "python")
    for name in sorted({*then.packages, *now.packages}):
        before, after = then.packages.get(name, "not installed"), now.packages.get(name, "not installed")
        if before != after:
            yield f"{name} {before} then, {after} now"


def _git() -> tuple[str | None, bool | None]:
    """The commit of the checkout that this code is, and if its tracked files were changed since."""
    if not (PROJECT / ".git").exists():  # installed as a package, or copied into an image
        return None, None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PROJECT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=GIT_SECONDS).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):  # no git here, or no commit yet
        return None, None


def _processor() -> str | None:
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None
