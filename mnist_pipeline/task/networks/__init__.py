"""The networks by their names: a file here is a network of its own, and some of torchvision's are known, too.

A file `my_network.py` has a function `build(settings, spec)` that returns an `nn.Module`, from inputs float32
(N, C, H, W) to logits (N, classes). It is found by its name; nothing else has to be changed. This file loads without
torch.
"""

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from mnist_pipeline.task.settings import NetworkSettings
    from mnist_pipeline.task.spec import TaskSpec

TORCHVISION = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "mobilenet_v3_small", "mobilenet_v3_large"), 28),
    **dict.fromkeys(("efficientnet_b0", "shufflenet_v2_x1_0"), 28),
    **dict.fromkeys(("convnext_tiny", "densenet121"), 32),
}
"""The models of torchvision that are known to train, export and predict here, each with its least image side.

(MNASNet is not: it cannot be built from tensors alone, as safetensors files have them.)
"""


def known_networks() -> list[str]:
    """Return the names of all networks: those of the files in this folder, and torchvision's."""
    files = [module.name for module in pkgutil.iter_modules(__path__) if module.name != "torchvision_models"]
    return sorted(files) + list(TORCHVISION)


def build_network(settings: "NetworkSettings", spec: "TaskSpec") -> "nn.Module":
    """Return a network with random weights: inputs float32 (N, C, H, W) -> logits (N, classes).

    Raises ValueError if the images are too small for it.
    """
    name = "torchvision_models" if settings.network in TORCHVISION else settings.network
    network: nn.Module = import_module(f"{__name__}.{name}").build(settings, spec)
    return network
