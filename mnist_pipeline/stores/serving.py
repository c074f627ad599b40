"""The check that a candidate can be served: the service answers real requests with it, in a process of its own, before
it is promoted. Where `serve/` was deleted, that is left out, and the record says so.
"""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from mnist_pipeline.ml.data import evenly
from mnist_pipeline.ml.manifest import ModelManifest, ServingCheck
from mnist_pipeline.stores.exports import ONNX
from mnist_pipeline.stores.local import LocalModelStore
from mnist_pipeline.stores.versions import MANIFEST
from mnist_pipeline.task.dataset import LabelledImages

SERVICE = "mnist_pipeline.serve"

IMAGES = 32
"""Test images that the service is asked about."""

CHECK_SECONDS = 120
"""The longest that the check may take; usual are three seconds."""

KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "OMP_NUM_THREADS")
"""The variables that the process is given: those of this deployment are about another store, and may be secret."""


class CannotBeServed(Exception):
    """The version cannot be served; the message says why."""


def check_served(
    manifest: ModelManifest,
    onnx: bytes,
    test: LabelledImages,
    predicted: np.ndarray | None,
    max_latency_ms: float | None,
) -> ServingCheck:
    """Have the service answer with a version about some test images, whose `predicted` labels it must give.

    The files go along, so that the process needs no access to the store. `predicted` is None for a version of other
    classes, which must answer as its own predictor does. Raises CannotBeServed.
    """
    if importlib.util.find_spec(SERVICE) is None:
        return ServingCheck(left_out=f"{SERVICE} is not there")
    from safetensors.numpy import save_file

    chosen = evenly(len(test.labels), IMAGES)
    with TemporaryDirectory(prefix="serving-") as folder:
        store, expected = LocalModelStore(base_path=folder), Path(folder) / "expected.safetensors"
        if predicted is not None:
            save_file({"images": test.images[chosen], "labels": predicted[chosen]}, expected)
        pinned = manifest.model_copy(update={"onnx_sha256": hashlib.sha256(onnx).hexdigest()})
        store.create_object(f"{manifest.name}/{ONNX}", onnx)
        store.create_object(f"{manifest.name}/{MANIFEST}", pinned.model_dump_json().encode())
        command = [sys.executable, "-m", SERVICE, "--store", folder, "--check", manifest.name]
        command += ["--expected", str(expected)] if predicted is not None else []
        try:
            run = subprocess.run(
                command,
                env=_environment(),
                cwd=folder,  # where no .env is
                capture_output=True,
                text=True,
                timeout=CHECK_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CannotBeServed(f"the service did not answer within {CHECK_SECONDS} s") from None
    if run.returncode:
        said = (run.stderr.strip().splitlines() or [f"the process ended with {run.returncode}"])[-1]
        raise CannotBeServed(said.removeprefix(f"error: {manifest.name} cannot be served: "))
    found = ServingCheck(**json.loads(run.stdout.splitlines()[-1]))
    if max_latency_ms is not None and found.median_ms is not None and found.median_ms > max_latency_ms:
        raise CannotBeServed(f"it answers in {found.median_ms:.1f} ms, more than max_latency_ms {max_latency_ms:g}")
    return found


def _environment() -> dict[str, str]:
    modules = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    return {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ} | {"PYTHONPATH": modules}
