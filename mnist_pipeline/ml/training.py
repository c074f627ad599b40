"""Training: from settings and splits to the weights of the best epoch."""

import hashlib
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from upath import UPath

from mnist_pipeline.ml.checkpoint import TrainingState, remove_checkpoint, restore_checkpoint, save_checkpoint
from mnist_pipeline.ml.data import class_counts, data_version
from mnist_pipeline.ml.model import (
    channels_first,
    choose_device,
    computes_bfloat16,
    cross_entropy,
    load_initial_weights,
    normalize,
    predict_logits,
    weights_to_bytes,
)
from mnist_pipeline.ml.records import EpochMetrics, Splits
from mnist_pipeline.ml.settings import (
    DEFAULT_SGD_MOMENTUM,
    DEFAULT_STEP_GAMMA,
    DEFAULT_STEP_SIZE,
    DEFAULT_WARMUP_FRACTION,
    DEFAULT_WEIGHT_DECAY,
    TRAINING_CODE_VERSION,
    TrainingSettings,
)
from mnist_pipeline.task.augmentation import augment
from mnist_pipeline.task.networks import build_network
from mnist_pipeline.task.spec import TaskSpec

log = logging.getLogger(__name__)

T = TypeVar("T")

GPU_SHARE = 0.5
"""The share of a GPU's free memory that the training images may take: the rest is for the network."""


class TrainingDiverged(ArithmeticError):
    """The loss is no longer finite."""


class TrainingResult(NamedTuple):
    """The best epoch's weights and how they came about."""

    weights: bytes
    """A safetensors file: the moving average (`ema_epochs`) at the end of the best epoch."""
    history: list[EpochMetrics]
    best_epoch: int
    stopped_early: bool
    resumed_after: int
    """The last epoch found in a checkpoint; 0: trained from the start."""
    device: str
    precision: str


def train(
    settings: TrainingSettings,
    splits: Splits,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
    checkpoint_dir: Path | UPath | None = None,
) -> TrainingResult:
    """Train on `splits.train` and choose the epoch of least loss on `splits.validation`.

    The test split is not touched. With `early_stopping_min_delta` a loss counts as less only from that much on.

    `on_epoch` is called after each epoch. With `checkpoint_dir`, each epoch is saved there, a killed training
    of the same settings, data and code continues from the last one; `discard_checkpoint` removes it.
    Equal settings and data give equal weights on the same device, resumed or not.

    Raises TrainingDiverged when the loss is not finite, ValueError when the device is not there, the images are too
    small for the network, or the initial weights are not for it.
    """
    device = choose_device(settings.device)
    torch.backends.cudnn.deterministic = True  # no effect but on CUDA
    torch.backends.cudnn.benchmark = False
    bfloat16 = _use_bfloat16(settings.precision, device)
    images = _near(channels_first(torch.from_numpy(splits.train.images)), device)  # (N, C, H, W), uint8
    labels = torch.from_numpy(splits.train.labels).long().to(device)  # (N,)
    state = _initial_state(settings, splits.spec, device, _steps_per_epoch(settings, len(images)))
    fingerprint = training_fingerprint(settings, splits)
    folder = checkpoint_dir / fingerprint[:16] if checkpoint_dir else None
    if folder and restore_checkpoint(folder, fingerprint, state):
        log.info("resuming after epoch %d of %d", len(state.history), settings.epochs)
    resumed_after = len(state.history)

    while not _finished(settings, state):
        epoch = len(state.history) + 1
        metrics = _run_epoch(epoch, settings, state, images, labels, splits, bfloat16)
        best = state.history[state.best_epoch - 1].validation_loss if state.history else math.inf
        state.history.append(metrics)
        if metrics.validation_loss < best - settings.early_stopping_min_delta:
            state.best_epoch = epoch
            weights = state.average.module.state_dict()
            state.best_weights = {name: tensor.cpu().clone() for name, tensor in weights.items()}
        if folder:
            save_checkpoint(folder, fingerprint, state)
        if on_epoch:
            on_epoch(metrics)

    state.model.load_state_dict(state.best_weights)
    return TrainingResult(
        weights=weights_to_bytes(state.model),
        history=state.history,
        best_epoch=state.best_epoch,
        stopped_early=len(state.history) < settings.epochs,
        resumed_after=resumed_after,
        device=device.type,
        precision="bfloat16" if bfloat16 else "float32",
    )


def discard_checkpoint(settings: TrainingSettings, splits: Splits, checkpoint_dir: Path | UPath) -> None:
    """Remove what `train` saved on the way, once its result is safe elsewhere."""
    remove_checkpoint(checkpoint_dir / training_fingerprint(settings, splits)[:16])


def _run_epoch(
    epoch: int,
    settings: TrainingSettings,
    state: TrainingState,
    images: Tensor,
    labels: Tensor,
    splits: Splits,
    bfloat16: bool,
) -> EpochMetrics:
    """Make one pass over the training images, on the device, and one over the validation images."""
    began = time.perf_counter()
    device = labels.device
    generator = torch.Generator().manual_seed(_epoch_seed(settings.seed, epoch))
    order = torch.randperm(len(images), generator=generator)  # (N,)
    total_loss = torch.zeros((), device=device)
    hits = torch.zeros((), device=device)
    weights = _class_weights(settings, splits, device)  # (classes,), or None
    state.model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(_epoch_seed(settings.seed, epoch))  # dropout draws from the global generators
        # In parts of equal size: batch norm learns nothing from a last batch of one image.
        for chosen in order.to(images.device).tensor_split(_steps_per_epoch(settings, len(images))):
            # B is the batch: at most batch_size images.
            inputs = normalize(
                augment(images[chosen].to(device), settings, splits.spec, generator), splits.spec
            )  # (B, C, H, W), float32
            targets = labels[chosen.to(device)]  # (B,)
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                logits = state.model(inputs)  # (B, classes)
            loss = F.cross_entropy(logits.float(), targets, weights)  # a scalar
            state.optimizer.zero_grad()
            loss.backward()
            state.optimizer.step()
            state.average.update_parameters(state.model)
            state.schedule.step()
            # Kept on the device: reading them at every step would stall a GPU.
            total_loss += loss.detach() * len(chosen)
            hits += (logits.argmax(1) == targets).sum()
    train_loss = total_loss.item() / len(images)
    trained = time.perf_counter()
    if not math.isfinite(train_loss):
        raise TrainingDiverged(
            f"the training loss is {train_loss} in epoch {epoch}: lower learning_rate (now {settings.learning_rate})"
        )
    validation = splits.validation
    logits = predict_logits(state.average, validation.images, splits.spec)  # (N, classes)
    return EpochMetrics(
        epoch=epoch,
        train_loss=train_loss,
        train_accuracy=hits.item() / len(images),
        validation_loss=cross_entropy(logits, validation.labels),
        validation_accuracy=(logits.argmax(1).numpy() == validation.labels).mean().item(),
        learning_rate=state.optimizer.param_groups[0]["lr"],
        seconds=time.perf_counter() - began,
        images_per_second=len(images) / (trained - began),
    )


def _near(images: Tensor, device: torch.device) -> Tensor:
    """The images on the device; those that would fill a GPU stay where they are, and go there by batches.

    So do all where the GPU has no memory of its own.
    """
    if device.type == "mps" or (
        device.type == "cuda" and images.nbytes > GPU_SHARE * torch.cuda.mem_get_info(device)[0]
    ):
        return images
    return images.to(device)


def _class_weights(settings: TrainingSettings, splits: Splits, device: torch.device) -> Tensor | None:
    """Return balanced weights as scikit-learn has them, images / (classes * images of the class), or None for none."""
    if settings.class_weights == "none":
        return None
    counts = torch.tensor(class_counts(splits.train.labels, splits.spec))
    return len(splits.train.labels) / (splits.spec.classes * counts.clamp(min=1)).to(device)


def _steps_per_epoch(settings: TrainingSettings, images: int) -> int:
    return math.ceil(images / settings.batch_size)


def _initial_state(
    settings: TrainingSettings, spec: TaskSpec, device: torch.device, steps_per_epoch: int
) -> TrainingState:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = build_network(settings, spec)  # on the CPU first, so that a seed gives the same weights on every device
    if settings.initial_weights:
        load_initial_weights(model, Path(settings.initial_weights))
    model.to(device)
    optimizer = _optimizer(settings, model)
    schedule = _schedule(settings, optimizer, steps_per_epoch)
    steps = settings.ema_epochs * steps_per_epoch
    decay = math.exp(-1 / steps) if steps else 0.0
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return TrainingState(model, average, optimizer, schedule, best_weights={}, best_epoch=0, history=[])


def _optimizer(settings: TrainingSettings, model: nn.Module) -> Optimizer:
    parameters, rate = model.parameters(), settings.learning_rate
    decay = _or_default(settings.weight_decay, DEFAULT_WEIGHT_DECAY[settings.optimizer])
    match settings.optimizer:
        case "adam":
            return Adam(parameters, lr=rate, weight_decay=decay)
        case "adamw":
            return AdamW(parameters, lr=rate, weight_decay=decay)
        case "sgd":
            momentum = _or_default(settings.momentum, DEFAULT_SGD_MOMENTUM)
            return SGD(parameters, lr=rate, weight_decay=decay, momentum=momentum, nesterov=momentum > 0)


def _schedule(settings: TrainingSettings, optimizer: Optimizer, steps_per_epoch: int) -> LRScheduler:
    """A schedule that is stepped after every batch."""
    match settings.schedule:
        case "onecycle":
            steps = settings.epochs * steps_per_epoch + 1  # torch counts the rate before the first step
            warmup = _or_default(settings.warmup_fraction, DEFAULT_WARMUP_FRACTION)
            return OneCycleLR(
                optimizer,
                max_lr=settings.learning_rate,
                total_steps=steps,
                pct_start=max(warmup, 2 / steps),  # torch divides by zero in a warm-up of no step
                cycle_momentum=False,  # momentum is a setting of its own
            )
        case "step":
            epochs = _or_default(settings.step_size, DEFAULT_STEP_SIZE)
            gamma = _or_default(settings.step_gamma, DEFAULT_STEP_GAMMA)
            return StepLR(optimizer, step_size=epochs * steps_per_epoch, gamma=gamma)
        case "none":
            return LambdaLR(optimizer, lambda _: 1.0)


def _finished(settings: TrainingSettings, state: TrainingState) -> bool:
    epochs, patience = len(state.history), settings.early_stopping_patience
    return epochs >= settings.epochs or (patience is not None and epochs - state.best_epoch >= patience)


def _use_bfloat16(precision: str, device: torch.device) -> bool:
    return computes_bfloat16(device) if precision == "auto" else precision == "bfloat16"


def _or_default(value: T | None, default: T) -> T:
    return default if value is None else value


def _epoch_seed(seed: int, epoch: int) -> int:
    """A seed for each epoch, so that a resumed training draws what the uninterrupted one would have drawn."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:8], "big") >> 1


def training_fingerprint(settings: TrainingSettings, splits: Splits) -> str:
    """Equal for trainings that give the same weights."""
    data = data_version(splits.spec, splits.train, splits.validation)
    begun = Path(settings.initial_weights).read_bytes() if settings.initial_weights else b""
    identity = f"{TRAINING_CODE_VERSION} {settings.model_dump_json()} {data} {hashlib.sha256(begun).hexdigest()}"
    return hashlib.sha256(identity.encode()).hexdigest()
