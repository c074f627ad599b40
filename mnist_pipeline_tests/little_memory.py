"""The code location with a training that declares too little memory."""

from mnist_pipeline.defs import training
from mnist_pipeline.defs.engines.compute import Compute

training.TRAINING_COMPUTE = Compute(cores=1, memory_mib=100)

from mnist_pipeline.definitions import defs  # noqa: E402  # after the change

__all__ = ["defs"]
