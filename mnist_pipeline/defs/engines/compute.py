"""The cores, memory and GPUs that a step needs, declared once beside its asset."""

import json
import os
from collections.abc import Mapping
from typing import NamedTuple

PREFIX = "mnist_pipeline/"

THREADS = "OMP_NUM_THREADS"
"""PyTorch takes as many threads from it; elsewhere it would count the cores of the whole machine."""

KUBERNETES_GPU = "nvidia.com/gpu"
"""The name that NVIDIA's device plugin gives to GPUs; for others see `per_step_k8s_config` of dagster-k8s."""


class Compute(NamedTuple):
    """Cores, memory and GPUs of one step.

    An engine with machines or containers gives the step this much. Where steps share one machine nothing divides it,
    and the numbers have no effect. A step without a declaration is cheap: it stays beside its run.
    """

    cores: int
    """The step's threads, too."""
    memory_mib: int
    """Containers and pods that take more are killed, and the step is tried again."""
    gpus: int = 0

    def tags(self) -> dict[str, str]:
        """Return the declaration as `op_tags` of an asset, which reach every engine; for dagster-k8s in its words."""
        amounts = {"cpu": str(self.cores), "memory": f"{self.memory_mib}Mi"}
        if self.gpus:
            amounts[KUBERNETES_GPU] = str(self.gpus)
        container = {
            "resources": {"requests": amounts, "limits": amounts},
            "env": [{"name": THREADS, "value": str(self.cores)}],
        }
        return {f"{PREFIX}{name}": str(value) for name, value in self._asdict().items()} | {
            "dagster-k8s/config": json.dumps({"container_config": container})
        }

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> "Compute | None":
        """Return what the tags of a step declare, None of a cheap step. Raises ValueError if that is no number."""
        declared = {name: tags[f"{PREFIX}{name}"] for name in cls._fields if f"{PREFIX}{name}" in tags}
        if not declared:
            return None
        try:
            compute = cls(**{name: int(value) for name, value in declared.items()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"the tags {declared} of the step are no `Compute`: declare it in the asset") from error
        if compute.cores < 1 or compute.memory_mib < 1 or compute.gpus < 0:
            raise ValueError(f"a step needs at least one core and some memory, not {compute}")
        return compute

    def threads(self) -> int:
        """Return the threads of this step in its own process: those of its place, else as many as it declares cores."""
        given = os.environ.get(THREADS, "")
        return int(given) if given.isdecimal() and int(given) else self.cores

    def thread_variable(self) -> str:
        """Return the variable of threads for the place of the step: the deployment's own, else by the cores."""
        return THREADS if THREADS in os.environ else f"{THREADS}={self.cores}"

    @property
    def outgrown(self) -> str:
        """The reason of a step that was killed, for people."""
        return (
            f"it took more than {self.memory_mib} MiB of memory and was killed: declare more beside the asset, "
            "or under `compute` in EXECUTOR_CONFIG"
        )

    @property
    def words(self) -> str:
        """The declaration for people."""
        gpus = f", {_count(self.gpus, 'GPU')}" if self.gpus else ""
        return f"{_count(self.cores, 'core')}, {self.memory_mib} MiB of memory{gpus}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
