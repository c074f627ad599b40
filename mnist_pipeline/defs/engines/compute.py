"""The cores, memory and GPUs that a step needs, declared once beside its asset."""

from collections.abc import Mapping
from typing import NamedTuple

PREFIX = "mnist_pipeline/"


class Compute(NamedTuple):
    """Cores, memory and GPUs of one step.

    An engine with machines or containers gives the step this much and no more. Where steps share one machine nothing
    divides it, and the numbers have no effect. A step without a declaration is cheap: it stays beside its run.
    """

    cores: int
    """The step's threads, too."""
    memory_mib: int
    """A step that takes more is killed, and tried again."""
    gpus: int = 0

    def tags(self) -> dict[str, str]:
        """Return the declaration as `op_tags` of an asset, which reach every engine."""
        return {f"{PREFIX}{name}": str(value) for name, value in self._asdict().items()}

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
