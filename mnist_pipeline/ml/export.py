"""The way from trained weights to `model.onnx`: what is served, with its scale, its temperature and its softmax, and a
score of how unlike the training images an image is.

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
from mnist_pipeline.ml.predictor import INPUT, OUTPUT, UNLIKENESS, Answers, Predictor
from mnist_pipeline.ml.records import Splits
from mnist_pipeline.ml.unlikeness import Unlikeness, Watched, fit_unlikeness
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


UNLIKENESS_TOLERANCE = 0.01
"""The distance of a score of unlikeness from its threshold below which the two may differ; scores spread over more than
1 on the validation images."""


class Exported(NamedTuple):
    """The file `model.onnx`, and what it says about the validation images."""

    onnx: bytes
    temperature: float
    answers: Answers


def export(weights: bytes, settings: NetworkSettings, splits: Splits) -> Exported:
    """Fit temperature and unlikeness, write the network as ONNX, and check what it says about the validation images.

    Equal weights, training and validation images give an equal file. Raises ModelError if the weights are not of the
    network, or if the file gives another label, probability or unlikeness than PyTorch.
    """
    spec, validation = splits.spec, splits.validation
    network = model_from_bytes(weights, settings, spec)
    logits = predict_logits(network, validation.images, spec)
    temperature = fit_temperature(logits, validation.labels)
    unlikeness, scores = fit_unlikeness(network, spec, splits.train, validation.images)
    onnx = to_onnx(network, spec, temperature, unlikeness)
    answers = require_same(onnx, spec, validation.images, logits / temperature)
    if (wrong := (answers.unlike != (scores > 0)) & (np.abs(scores) > UNLIKENESS_TOLERANCE)).any():
        raise ModelError(
            f"the exported model finds {wrong.sum()} images like or unlike training that the trained does not"
        )
    return Exported(onnx, temperature, answers)


def fit_temperature(logits: Tensor, labels: np.ndarray, between: tuple[float, float] = TEMPERATURES) -> float:
    """Return what logits (N, classes) are divided by so that confidences agree best with labels (N,).

    It lies `between` two numbers, minimizes the cross-entropy and leaves every label as it is: Guo et al. 2017, On
    Calibration of Modern Neural Networks, section 4.2.
    """
    from scipy.optimize import minimize_scalar

    wide, targets = logits.double(), torch.from_numpy(labels).long()

    def loss(log_temperature: float) -> float:
        return nn.functional.cross_entropy(wide / math.exp(log_temperature), targets).item()

    return math.exp(minimize_scalar(loss, bounds=[math.log(end) for end in between], method="bounded").x)


class _Served(nn.Module):
    """The network between its scale and its answers: images uint8 (N, H, W, C) -> probabilities float32 (N, classes),
    and with `unlikeness` its score, float32 (N,)."""

    def __init__(self, network: nn.Module, spec: TaskSpec, temperature: float, unlikeness: Unlikeness | None) -> None:
        super().__init__()
        self.network, self.spec, self.temperature, self.unlikeness = network, spec, temperature, unlikeness
        self.watched = Watched(network, spec)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        with self.watched.maps() as maps:
            logits = self.network(normalize(channels_first(images), self.spec))  # (N, classes)
        probabilities = (logits / self.temperature).softmax(1)
        if self.unlikeness is None:
            return probabilities
        return probabilities, self.unlikeness(logits, self.watched.features(maps))


def to_onnx(
    network: nn.Module, spec: TaskSpec, temperature: float = 1.0, unlikeness: Unlikeness | None = None
) -> bytes:
    """Return a network, on the CPU, as an ONNX file: equal bytes for equal weights and the same version of PyTorch."""
    file, outputs = io.BytesIO(), [OUTPUT, UNLIKENESS] if unlikeness else [OUTPUT]
    example = torch.zeros((2, *spec.image_shape), dtype=torch.uint8)
    with EXPORTING, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of the exporter; see above
        warnings.filterwarnings("ignore", "torch.tensor results are registered as constants")
        torch.onnx.export(
            _Served(network, spec, temperature, unlikeness).eval(),
            (example,),
            file,  # type: ignore[arg-type]  # a file of any kind, for this exporter
            dynamo=False,
            input_names=[INPUT],
            output_names=outputs,
            dynamic_axes={name: {0: "N"} for name in (INPUT, *outputs)},
            opset_version=OPERATOR_SET,
        )
    return file.getvalue()


def require_same(onnx: bytes, spec: TaskSpec, images: np.ndarray, logits: Tensor) -> Answers:
    """Return what an ONNX file says about uint8 images.

    Raises ModelError if a label differs from that of PyTorch's logits (N, classes), or a probability by more than
    TOLERANCE.
    """
    manifest = ModelManifest(name="exported", weights_sha256="", task=spec, network=NetworkSettings())
    answers, expected = Predictor(manifest, onnx, device="cpu").answer(images), logits.softmax(1).numpy()
    found = answers.probabilities
    difference = float(np.abs(found - expected).max())
    other = int((found.argmax(1) != expected.argmax(1)).sum())
    if difference > TOLERANCE or other:
        raise ModelError(
            f"the exported model is not the trained one: {other} of {len(images)} labels differ, and probabilities by "
            f"up to {difference:.1e} (allowed {TOLERANCE}); look for what the exporter cannot trace in the network"
        )
    return answers
