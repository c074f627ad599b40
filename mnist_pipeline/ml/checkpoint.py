"""The state of an unfinished training in one safetensors file: tensors as such, the rest as JSON in its header."""

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from upath import UPath

from mnist_pipeline.files import storage
from mnist_pipeline.files.tensors import header_texts
from mnist_pipeline.ml.records import EpochMetrics

log = logging.getLogger(__name__)

FILE_NAME = "checkpoint.safetensors"


@dataclass
class TrainingState:
    """All that changes while a training runs.

    There is no random state in it: each epoch seeds its own generators from the seed and its number.
    """

    model: nn.Module
    average: AveragedModel
    """Running average of the model's weights and buffers: what is validated and kept."""
    optimizer: Optimizer
    schedule: LRScheduler
    best_weights: dict[str, Tensor]
    best_epoch: int
    history: list[EpochMetrics]


def save_checkpoint(folder: Path | UPath, fingerprint: str, state: TrainingState) -> None:
    """Replace the checkpoint in `folder`, all or nothing."""
    optimizer = state.optimizer.state_dict()
    tensors = {f"model/{name}": tensor for name, tensor in state.model.state_dict().items()}
    tensors |= {f"average/{name}": tensor for name, tensor in state.average.state_dict().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in state.best_weights.items()}
    for index, slots in optimizer["state"].items():
        tensors |= {f"optimizer/{index}/{slot}": value for slot, value in slots.items() if value is not None}
    rest = {
        "fingerprint": fingerprint,
        "best_epoch": state.best_epoch,
        "history": [metrics.model_dump() for metrics in state.history],
        "param_groups": optimizer["param_groups"],
        "schedule": state.schedule.state_dict(),
    }
    data = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    texts = {"state": json.dumps(rest)}
    storage.write_bytes(folder / FILE_NAME, save_safetensors(data, texts | {"sha256": _digest(texts["state"], data)}))


def restore_checkpoint(folder: Path | UPath, fingerprint: str, state: TrainingState) -> bool:
    """Bring `state` to where the checkpoint in `folder` left off; False if there is none for this fingerprint.

    An unreadable checkpoint is reported and left out: training again costs time, resuming from it would
    cost correctness.
    """
    path = folder / FILE_NAME
    try:
        data = storage.read_bytes(path)
    except FileNotFoundError:
        return False
    try:
        texts, tensors = header_texts(data), load_safetensors(data)
        if texts.get("sha256", digest := _digest(texts["state"], tensors)) != digest:  # earlier code wrote none
            raise ValueError("its content is not what was saved")
        rest = json.loads(texts["state"])
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError) as error:
        log.warning("training from the start, since %s is not a readable checkpoint: %s", path, error)
        return False
    if rest["fingerprint"] != fingerprint:
        log.warning("training from the start, since %s belongs to other data, settings or code", path)
        return False
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below(tensors, "optimizer/").items():
        index, slot = name.split("/")
        slots.setdefault(int(index), {})[slot] = tensor
    state.model.load_state_dict(_below(tensors, "model/"))
    state.average.load_state_dict(_below(tensors, "average/"))
    state.optimizer.load_state_dict({"state": slots, "param_groups": rest["param_groups"]})
    for parameter, restored in state.optimizer.state.items():
        for slot, value in restored.items():
            if value.shape == parameter.shape:  # laid out in memory as the optimizer would have made it: same kernels
                restored[slot] = torch.empty_like(parameter).copy_(value)
    state.schedule.load_state_dict(rest["schedule"])
    state.best_weights = _below(tensors, "best/")
    state.best_epoch = rest["best_epoch"]
    state.history = [EpochMetrics(**metrics) for metrics in rest["history"]]
    return True


def remove_checkpoint(folder: Path | UPath) -> None:
    """Remove the checkpoint in `folder`, and the folder."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)  # also what kills left unfinished
    else:
        storage.delete(folder / FILE_NAME)


def _digest(state: str, tensors: dict[str, Tensor]) -> str:
    """The SHA-256 (hex) of all that a checkpoint holds."""
    sha = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        sha.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)} ".encode())
        sha.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
