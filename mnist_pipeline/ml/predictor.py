"""Predictions with one verified model: the same code for a score, a table of files, a drawing, and a request.

The model runs in ONNX Runtime, which is a tenth of PyTorch's weight: nothing here needs what it was trained with.
"""

from typing import NamedTuple, Protocol

import numpy as np
import onnxruntime as ort

from mnist_pipeline.ml.errors import ModelError, NoDeployedModel
from mnist_pipeline.ml.manifest import Decision, ModelManifest
from mnist_pipeline.ml.onnx_file import require_standard
from mnist_pipeline.task.spec import TaskSpec

BATCH_SIZE = 256
BATCH_BYTES = 1 << 18
"""Images that are predicted together, and their bytes on a CPU: what is in work stays in its cache."""

INPUT, OUTPUT, UNLIKENESS = "images", "probabilities", "unlikeness"
"""The input of a model, uint8 (N, H, W, C), and its outputs, float32 (N, classes) and (N,).

The last one, above 0 for images unlike those of the training, versions of before there was one do not have.
"""

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
"""ONNX Runtime's name of each device; the package `onnxruntime-gpu` in place of `onnxruntime` has both."""

FATAL = 4
"""The runtime's log level from which it writes: what goes wrong is raised, and need not stand in the log too."""


class Answers(NamedTuple):
    """All that a model says about N images."""

    probabilities: np.ndarray
    """float32 (N, classes)."""
    unlikeness: np.ndarray | None
    """float32 (N,), above 0 for images unlike the training images; None of a version from before that was told."""

    @property
    def unlike(self) -> np.ndarray | None:
        """Return bool (N,): which are unlike the training images; None of a version from before that was told."""
        return None if self.unlikeness is None else self.unlikeness > 0


class DeployedModels(Protocol):
    """The part of a model store that a predictor needs."""

    def production(self) -> Decision | None: ...

    def load_onnx(self, name: str) -> tuple[ModelManifest, bytes]: ...


def require_task(manifest: ModelManifest, name: str) -> None:
    """Raise ModelError if a version is of another task than the one of this name."""
    if manifest.task.name != name:
        raise ModelError(
            f"{manifest.name} is a model of {manifest.task.name}, not of {name} (DATASET): use another MODEL_STORE, or "
            "deploy a version of this task, by strategy 'force'"
        )


class Predictor:
    """One verified model, which holds its own preprocessing."""

    def __init__(self, manifest: ModelManifest, onnx: bytes, device: str = "auto", threads: int = 0) -> None:
        """Load the file `model.onnx` of a version; `threads` of a processor for a batch, 0: as many as it has cores.

        `device` is cpu, cuda, or auto: cuda where the runtime has it. Raises ModelError if the file is not a model of
        standard operators for the images and classes of the manifest, ValueError if the device is not there.
        """
        require_standard(onnx)
        self.manifest = manifest
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, FATAL
        # What was looked at is what is loaded: the runtime would take some bytes for another format of its own.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        try:
            self._session = ort.InferenceSession(onnx, options, providers=_providers(device))
        except Exception as error:  # the parent of each of the runtime's errors
            raise ModelError(f"the runtime cannot load the model: {_first_line(error)}") from error
        if device == "cuda" and PROVIDERS[device] not in self._session.get_providers():
            raise ValueError("device 'cuda' cannot be used: ONNX Runtime finds no driver or libraries for it")
        self._require_signature()

    @classmethod
    def from_store(cls, store: DeployedModels, device: str = "auto", threads: int = 0) -> "Predictor":
        """Return the predictor of what is deployed, which need not be the newest version.

        Raises NoDeployedModel if nothing is, and what `store.load_onnx` raises if it is damaged.
        """
        decision = store.production()
        if decision is None:
            raise NoDeployedModel("no model is deployed yet: materialize production_digit_classifier first")
        return cls(*store.load_onnx(decision.version), device=device, threads=threads)

    @property
    def version(self) -> str:
        """The name of the version in the model store."""
        return self.manifest.name

    @property
    def spec(self) -> TaskSpec:
        """The classes of the model and the shape of its images."""
        return self.manifest.task

    def require_task(self, name: str) -> None:
        """Raise ModelError if the model is of another task than the one of this name."""
        require_task(self.manifest, name)

    def require_images_of(self, spec: TaskSpec) -> None:
        """Raise ModelError if the model is of another task than `spec`, or for images of another shape."""
        self.require_task(spec.name)
        if self.spec.array_shape != spec.array_shape:
            raise ModelError(
                f"{self.version} is for images of {self.spec.array_shape}, but the data has {spec.array_shape}: "
                "deploy a version that was trained on those, by strategy 'force'"
            )

    def verify(self) -> tuple[float, float]:
        """Predict a black and a white image and return the confidences. Raises ModelError if they are not finite."""
        images = np.stack([np.full(self.spec.array_shape, value, np.uint8) for value in (0, 255)])
        black, white = self.predict(images).max(1).tolist()
        return black, white

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Return class probabilities, float32 (N, classes), of uint8 images (N, *spec.array_shape).

        Raises what `answer` raises.
        """
        return self.answer(images).probabilities

    def answer(self, images: np.ndarray) -> Answers:
        """Return all that the model says about uint8 images (N, *spec.array_shape).

        Raises ValueError for any other dtype or shape: floats would hide whether they are normalised already. Raises
        ModelError if an output is not finite.
        """
        self.spec.require_images(images)
        if not len(images):
            raise ValueError("there is no image to predict")
        images = images.reshape(-1, *self.spec.image_shape)  # (N, H, W) -> (N, H, W, 1)
        on_cpu = self._session.get_providers()[0] == PROVIDERS["cpu"]
        size = max(1, min(BATCH_SIZE, BATCH_BYTES // images[0].nbytes)) if on_cpu else BATCH_SIZE
        if len(images) <= size:
            outputs = self._run(images)
        else:
            outputs = [np.empty((len(images), *shape), np.float32) for shape in self._shapes]
            for start in range(0, len(images), size):
                for whole, part in zip(outputs, self._run(images[start : start + size]), strict=True):
                    whole[start : start + size] = part
        if not all(np.isfinite(output).all() for output in outputs):
            raise ModelError("the model gives outputs that are not finite")
        return Answers(outputs[0], outputs[1] if len(outputs) > 1 else None)

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        try:
            outputs = [np.asarray(output) for output in self._session.run(None, {INPUT: images})]
        except Exception as error:  # as above
            raise ModelError(f"the model cannot be run: {_first_line(error)}") from error
        if [output.shape for output in outputs] != [(len(images), *shape) for shape in self._shapes]:
            raise ModelError(f"the model gives {[output.shape for output in outputs]} for {len(images)} images")
        return outputs

    def _require_signature(self) -> None:
        found = [(port.name, port.type, port.shape[1:]) for port in self._session.get_inputs()]
        given = [(port.name, port.type, port.shape[1:]) for port in self._session.get_outputs()]
        expected = [(INPUT, "tensor(uint8)", [*self.spec.image_shape])]
        wanted = [(OUTPUT, "tensor(float)", [self.spec.classes]), (UNLIKENESS, "tensor(float)", [])]
        self._shapes = [shape for _, _, shape in given]
        if found != expected or given not in (wanted, wanted[:1]):
            raise ModelError(f"the model takes {found} and gives {given}, but {expected} and {wanted} are its task")


def _providers(device: str) -> list[str]:
    there = [name for name, provider in PROVIDERS.items() if provider in ort.get_available_providers()]
    if device != "auto" and device not in there:
        raise ValueError(f"device '{device}' is not available to ONNX Runtime here; there is {', '.join(there)}")
    return [PROVIDERS[there[0] if device == "auto" else device]]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
