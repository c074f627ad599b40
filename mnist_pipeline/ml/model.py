"""A network of the task while it is trained: as bytes, on a device, and what it says about images."""

import logging
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_pipeline.ml.errors import ModelError
from mnist_pipeline.ml.predictor import BATCH_SIZE
from mnist_pipeline.task.networks import build_network
from mnist_pipeline.task.settings import NetworkSettings
from mnist_pipeline.task.spec import TaskSpec

log = logging.getLogger(__name__)

BROKEN_PICKLE = (RuntimeError, EOFError, IndexError, KeyError, ValueError, TypeError, AttributeError)
"""The errors of `torch.load` about files that are none of its own."""


def channels_first(images: Tensor) -> Tensor:
    """View images (N, H, W) as (N, 1, H, W), and images (N, H, W, C) as (N, C, H, W)."""
    return images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)


def normalize(images: Tensor, spec: TaskSpec) -> Tensor:
    """Scale `images` (N, C, H, W), uint8 or float 0..255, to `inputs`, float32 of the same shape.

    Over the training images that mean and std of `spec` were computed from, inputs have mean 0 and variance 1.
    """
    mean, std = (_per_channel(values, images.device) for values in (spec.mean, spec.std))
    return (images.float() / 255 - mean) / std


def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor | float:
    """Return, of a single channel, the plain number: unlike a tensor it need not be copied to a GPU at every step."""
    return values[0] if len(values) == 1 else torch.tensor(values, device=device).view(-1, 1, 1)


def weights_to_bytes(model: nn.Module) -> bytes:
    """Return the state dict as a safetensors file."""
    return save_safetensors({name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()})


def model_from_bytes(weights: bytes, settings: NetworkSettings, spec: TaskSpec) -> nn.Module:
    """Rebuild a network, in evaluation mode on the CPU.

    Raises ModelError if the bytes are not a safetensors file with exactly the tensors of this architecture,
    or if one of them is not finite. Nothing in the bytes is ever executed.
    """
    try:
        state = load_safetensors(weights)
    except SafetensorError as error:
        raise ModelError(f"the weights are not a safetensors file: {error}") from error
    if broken := [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]:
        raise ModelError(f"the weights are not finite: {', '.join(broken)}")
    try:
        model = build_network(settings, spec)
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            "the weights do not fit the architecture in the manifest; if they are of an older version of the code, "
            f"train anew and deploy by strategy `force`: {error}"
        ) from error
    return model.eval()


def load_initial_weights(model: nn.Module, path: Path) -> None:
    """Give a network the tensors of a file that have a name and a shape of its own; the rest stays as it is.

    The names may lack the `model.` in front that those of torchvision's models have here. Raises ValueError if the file
    cannot be read as a safetensors file or a state dict, or if it has no tensor for the network. Nothing is executed.
    """
    try:
        if path.suffix == ".safetensors":
            found = load_safetensors(path.read_bytes())
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, UnpicklingError, *BROKEN_PICKLE) as error:
        raise ValueError(f"initial_weights: {path} cannot be read: {error}") from error
    own, prefix = model.state_dict(), "model."
    tensors = (
        {name: value for name, value in found.items() if isinstance(value, Tensor)} if isinstance(found, dict) else {}
    )
    named = {name if name in own else prefix + name: tensor for name, tensor in tensors.items()}
    fitting = {name: tensor for name, tensor in named.items() if name in own and tensor.shape == own[name].shape}
    if not fitting:
        raise ValueError(f"initial_weights: {path} has no tensor for this network, which begins with {next(iter(own))}")
    log.info("%d of %d tensors begin as in %s", len(fitting), len(own), path)
    model.load_state_dict(own | fitting)


def choose_device(choice: str) -> torch.device:
    """Return the device of that name; `auto` takes cuda, else mps, else cpu. Raises ValueError if it is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if choice == "auto":
        choice = next(name for name, there in available.items() if there)
    if not available[choice]:
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise ValueError(f"device '{choice}' is not available here; there is {there}")
    return torch.device(choice)


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether the device is known to multiply bfloat16 in hardware, so that autocast gains time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


@torch.inference_mode()
def predict_logits(model: nn.Module, images: np.ndarray, spec: TaskSpec, batch_size: int = BATCH_SIZE) -> Tensor:
    """Return logits on the CPU, float32 (N, classes), of uint8 images (N, *spec.array_shape).

    Raises ModelError if one is not finite.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    batches = channels_first(torch.from_numpy(images)).split(batch_size)  # each (batch_size, C, H, W)
    # At once: kept batch by batch, they would lie between what is freed, and keep that from being used again.
    logits = torch.empty(len(images), spec.classes)
    for batch, part in zip(batches, logits.split(batch_size), strict=True):
        part.copy_(model(normalize(batch.to(device), spec)))
    model.train(was_training)
    if not torch.isfinite(logits).all():
        raise ModelError("the model gives outputs that are not finite")
    return logits


def cross_entropy(logits: Tensor, labels: np.ndarray) -> float:
    """Return the mean cross-entropy in nats of logits (N, classes) and uint8 labels (N,)."""
    return F.cross_entropy(logits, torch.from_numpy(labels).long()).item()
