"""The way from trained weights to `model.onnx`: what is served, with its scale, its temperature and its softmax.

PyTorch's older exporter (`dynamo=False`) is used: it takes 0.3 s, needs the package `onnx` only, and gives equal bytes
for equal weights. The newer one needs `onnxscript` too and takes 11 s; should the older one go, `to_onnx` is the one
function to change (`dynamo=True`, and `model_proto` of what it returns), and its test says so.
"""

import io
import math
import warnings
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mnist_pipeline.ml.errors import ModelError
from mnist_pipeline.ml.manifest import ModelManifest
from mnist_pipeline.ml.model import channels_first, model_from_bytes, normalize, predict_logits
from mnist_pipeline.ml.predictor import INPUT, OUTPUT, Predictor
from mnist_pipeline.task.dataset import LabelledImages
from mnist_pipeline.task.settings import NetworkSettings
from mnist_pipeline.task.spec import TaskSpec

OPERATOR_SET = 17
"""The version of the standard operators that is asked for; ONNX Runtime knows it since 2022."""

TOLERANCE = 1e-5
"""The most that a probability may differ from PyTorch's: single precision, in another order of additions."""

TEMPERATURES = (0.5, 5.0)
"""The range of the temperature. A network that errs on no validation image would be made ever more certain."""


EXPORTING = Lock()
"""The exporter keeps its state in the module."""


class Exported(NamedTuple):
    """The file `model.onnx`, and what it says about the validation images."""

    onnx: bytes
    temperature: float
    probabilities: np.ndarray
    """float32 (N, classes), of the validation images."""


def export(weights: bytes, settings: NetworkSettings, spec: TaskSpec, validation: LabelledImages) -> Exported:
    """Fit the temperature to the validation images, write the network as ONNX, and check what it says about them.

    Equal weights and validation images give an equal file. Raises ModelError if the weights are not of the network, or
    if the file gives another label or probability than PyTorch.
    """
    network = model_from_bytes(weights, settings, spec)
    logits = predict_logits(network, validation.images, spec)
    temperature = fit_temperature(logits, validation.labels)
    onnx = to_onnx(network, spec, temperature)
    probabilities = require_same(onnx, spec, validation.images, logits / temperature)
    return Exported(onnx, temperature, probabilities)


def fit_temperature(logits: Tensor, labels: np.ndarray) -> float:
    """Return what logits (N, classes) are divided by so that confidences agree best with labels (N,).

    It minimizes the cross-entropy and leaves every label as it is: Guo et al. 2017, On Calibration of Modern Neural
    Networks, section 4.2.
    """
    from scipy.optimize import minimize_scalar

    wide, targets = logits.double(), torch.from_numpy(labels).long()

    def loss(log_temperature: float) -> float:
        return nn.functional.cross_entropy(wide / math.exp(log_temperature), targets).item()

    return math.exp(minimize_scalar(loss, bounds=[math.log(end) for end in TEMPERATURES], method="bounded").x)


class _Served(nn.Module):
    """The network between its scale and its probabilities: images uint8 (N, H, W, C) -> float32 (N, classes)."""

    def __init__(self, network: nn.Module, spec: TaskSpec, temperature: float) -> None:
        super().__init__()
        self.network, self.spec, self.temperature = network, spec, temperature

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(normalize(channels_first(images), self.spec))  # (N, classes)
        return (logits / self.temperature).softmax(1)


def to_onnx(network: nn.Module, spec: TaskSpec, temperature: float = 1.0) -> bytes:
    """Return a network, on the CPU, as an ONNX file: equal bytes for equal weights and the same version of PyTorch."""
    file = io.BytesIO()
    example = torch.zeros((2, *spec.image_shape), dtype=torch.uint8)
    with EXPORTING, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of the exporter; see above
        warnings.filterwarnings("ignore", "torch.tensor results are registered as constants")
        torch.onnx.export(
            _Served(network, spec, temperature).eval(),
            (example,),
            file,  # type: ignore[arg-type]  # a file of any kind, for this exporter
            dynamo=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "N"}, OUTPUT: {0: "N"}},
            opset_version=OPERATOR_SET,
        )
    return file.getvalue()


def require_same(onnx: bytes, spec: TaskSpec, images: np.ndarray, logits: Tensor) -> np.ndarray:
    """Return the probabilities that an ONNX file gives uint8 images, float32 (N, classes).

    Raises ModelError if a label differs from that of PyTorch's logits (N, classes), or a probability by more than
    TOLERANCE.
    """
    manifest = ModelManifest(name="exported", weights_sha256="", task=spec, network=NetworkSettings())
    found, expected = Predictor(manifest, onnx, device="cpu").predict(images), logits.softmax(1).numpy()
    difference = float(np.abs(found - expected).max())
    other = int((found.argmax(1) != expected.argmax(1)).sum())
    if difference > TOLERANCE or other:
        raise ModelError(
            f"the exported model is not the trained one: {other} of {len(images)} labels differ, and probabilities by "
            f"up to {difference:.1e} (allowed {TOLERANCE}); look for what the exporter cannot trace in the network"
        )
    return found
