"""DigitCNN, its input scaling, and its weights as bytes."""

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.nn import functional as F

from mnist_pipeline.ml.records import Normalization
from mnist_pipeline.ml.settings import CLASSES, TrainingSettings

INFERENCE_BATCH_SIZE = 256
"""Images in one forward pass without gradients: few enough that what is in work stays in a processor's cache."""


class ModelError(ValueError):
    """Weights that are not what the manifest promises, or that compute nonsense."""


def normalize(images: Tensor, normalization: Normalization) -> Tensor:
    """`images` (N, 28, 28), uint8 or float 0..255 -> `inputs` float32 (N, 1, 28, 28).

    Over the MNIST training images the inputs have mean 0 and variance 1.
    """
    return ((images.float() / 255 - normalization.mean) / normalization.std).unsqueeze(1)


class DigitCNN(nn.Module):
    """Convolution blocks and a small fully connected head: inputs (N, 1, 28, 28) -> logits (N, 10).

    No padding: the border of an MNIST image is empty, and most of the work is saved. The feature maps are by default
    (N, 32, 12, 12), (N, 64, 5, 5) and (N, 128, 3, 3).
    """

    def __init__(self, settings: TrainingSettings) -> None:
        super().__init__()
        self.features = nn.Sequential()
        channels = 1
        for convolution in settings.convolutions:
            self.features.append(_convolution_unit(channels, *convolution, dropout=settings.conv_dropout))
            channels = convolution.channels
        head: list[nn.Module] = [nn.Flatten()]
        width = channels * settings.features_side**2
        for units in settings.hidden_units:
            head += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(settings.hidden_dropout)]
            width = units
        self.head = nn.Sequential(*head, nn.Linear(width, CLASSES))
        self.to(memory_format=torch.channels_last)  # convolutions are faster so, on a CPU and in bfloat16 on a GPU

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs))


def _convolution_unit(channels_in: int, channels: int, kernel_size: int, pooled: bool, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, kernel_size, bias=False),  # batch norm has the bias
        nn.MaxPool2d(2) if pooled else nn.Identity(),  # before batch norm and ReLU, which then have a quarter to do
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Dropout2d(dropout),
    )


def weights_to_bytes(model: nn.Module) -> bytes:
    """The state dict as a safetensors file."""
    return save_safetensors({name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()})


def model_from_bytes(weights: bytes, settings: TrainingSettings) -> DigitCNN:
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
    model = DigitCNN(settings)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            "the weights do not fit the architecture in the manifest; if they are of an older version of the code, "
            f"train anew and deploy by strategy `force`: {error}"
        ) from error
    return model.eval()


def choose_device(choice: str) -> torch.device:
    """`auto` takes cuda, else mps, else cpu. Raises ValueError if the device asked for is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if choice == "auto":
        choice = next(name for name, there in available.items() if there)
    if not available[choice]:
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise ValueError(f"device '{choice}' is not available here; there is {there}")
    return torch.device(choice)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device is known to multiply bfloat16 in hardware, so that autocast gains time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


@torch.inference_mode()
def predict_probabilities(
    model: nn.Module, images: np.ndarray, normalization: Normalization, batch_size: int = INFERENCE_BATCH_SIZE
) -> np.ndarray:
    """Class probabilities, float32 (N, 10), of uint8 images (N, 28, 28), on the device of the model.

    Raises ModelError if one is not finite.
    """
    return torch.softmax(predict_logits(model, images, normalization, batch_size), dim=1).numpy()


@torch.inference_mode()
def predict_logits(
    model: nn.Module, images: np.ndarray, normalization: Normalization, batch_size: int = INFERENCE_BATCH_SIZE
) -> Tensor:
    """Logits on the CPU, float32 (N, 10), of uint8 images (N, 28, 28). Raises ModelError if one is not finite."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    batches = torch.from_numpy(images).split(batch_size)
    logits = torch.cat([model(normalize(batch.to(device), normalization)).cpu() for batch in batches])
    model.train(was_training)
    if not torch.isfinite(logits).all():
        raise ModelError("the model gives outputs that are not finite")
    return logits


def cross_entropy(logits: Tensor, labels: np.ndarray) -> float:
    """Mean cross-entropy in nats."""
    return F.cross_entropy(logits, torch.from_numpy(labels).long()).item()
