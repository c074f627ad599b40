"""Training: every setting has an effect, runs are repeatable, killed runs resume."""

import math
import multiprocessing
import platform
import signal
import threading
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.optim import AdamW

from mnist_pipeline.ml.checkpoint import FILE_NAME
from mnist_pipeline.ml.model import (
    ModelError,
    choose_device,
    model_from_bytes,
    predict_logits,
)
from mnist_pipeline.ml.predictor import BATCH_SIZE
from mnist_pipeline.ml.records import EpochMetrics
from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.ml.training import TrainingDiverged, discard_checkpoint, train
from mnist_pipeline.task.dataset import LabelledImages
from mnist_pipeline_tests.task.examples import SPEC, TINY


def settings(**changes) -> TrainingSettings:
    return TrainingSettings(**{**TINY, **changes})


@pytest.fixture(scope="module")
def reference(splits):
    return train(settings(epochs=2), splits)


def test_it_learns_and_reports(splits, trained):
    assert trained.history[-1].validation_accuracy > 0.5
    assert [metrics.epoch for metrics in trained.history] == [1, 2]
    model = model_from_bytes(trained.weights, settings(), SPEC)
    logits = predict_logits(model, splits.validation.images, SPEC)
    accuracy = (logits.argmax(1).numpy() == splits.validation.labels).mean()
    assert accuracy == pytest.approx(trained.history[trained.best_epoch - 1].validation_accuracy)


def test_the_same_seed_gives_the_same_weights(splits, reference):
    assert train(settings(epochs=2), splits).weights == reference.weights


@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 0.01), ("adam", 0.01), ("sgd", 0.1)])
def test_every_optimizer_learns_with_its_own_weight_decay(splits, optimizer, rate):
    """An L2 penalty of AdamW's size would keep Adam and SGD from learning."""
    result = train(settings(optimizer=optimizer, learning_rate=rate, epochs=4), splits)
    assert result.history[-1].validation_accuracy > 0.85


CHANGES = [
    {"epochs": 1},
    {"batch_size": 64},
    {"optimizer": "adam"},
    {"optimizer": "sgd"},
    {"learning_rate": 0.002},
    {"weight_decay": 0.5},
    {"ema_epochs": 0.0},
    {"schedule": "step"},
    {"schedule": "none"},
    {"warmup_fraction": 0.6},
    {"seed": 1},
    {"precision": "bfloat16"},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_each_setting_changes_the_result(splits, reference, change):
    assert train(settings(**change), splits).weights != reference.weights


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({"optimizer": "sgd"}, {"momentum": 0.1}),
        ({"schedule": "step", "step_size": 1}, {"step_gamma": 0.5}),
        ({"schedule": "step"}, {"step_size": 1}),
    ],
    ids=str,
)
def test_settings_of_one_choice_change_its_result(splits, base, change):
    assert train(settings(**base), splits).weights != train(settings(**base, **change), splits).weights


def test_balanced_weights_help_the_rare_classes(splits):
    """Half of the classes have eight images each to train on."""
    labels = splits.train.labels
    few = [np.flatnonzero(labels == label)[: 8 if label % 2 else None] for label in range(splits.spec.classes)]
    chosen = np.concatenate(few)
    unequal = splits._replace(train=LabelledImages(*(array[chosen] for array in splits.train)))

    def recall(**change) -> float:
        """The share of the validation images of the rare classes that are found."""
        weights = train(settings(epochs=6, **change), unequal).weights
        network = model_from_bytes(weights, settings(), splits.spec)
        rare = splits.validation.labels % 2 == 1
        found = predict_logits(network, splits.validation.images, splits.spec).argmax(1).numpy()
        return float((found == splits.validation.labels)[rare].mean())

    assert recall(class_weights="balanced") > recall() + 0.1


def test_patience_and_min_delta_stop_and_the_best_weights_are_restored(splits):
    eager = settings(
        epochs=8, learning_rate=0.2, schedule="none", early_stopping_patience=1, early_stopping_min_delta=0.0
    )
    result = train(eager, splits)
    assert result.stopped_early
    assert len(result.history) < 8
    losses = [metrics.validation_loss for metrics in result.history]
    assert result.best_epoch == losses.index(min(losses)) + 1 < len(losses)
    logits = predict_logits(model_from_bytes(result.weights, eager, SPEC), splits.validation.images, SPEC)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(splits.validation.labels).long()).item()
    assert loss == pytest.approx(min(losses), rel=1e-4)
    hard_to_please = settings(epochs=4, early_stopping_patience=2, early_stopping_min_delta=10.0)
    assert len(train(hard_to_please, splits).history) == 3
    assert len(train(settings(epochs=4), splits).history) == 4


def test_a_diverged_training_says_what_to_do(splits):
    with pytest.raises(TrainingDiverged, match="lower learning_rate"):
        train(settings(optimizer="sgd", learning_rate=10.0, momentum=0.99, schedule="none", epochs=8), splits)


@pytest.fixture
def steps(monkeypatch) -> list[tuple[float, list[torch.Tensor]]]:
    """The learning rate of each step of AdamW, and the parameters after it."""
    seen = []

    class Watched(AdamW):
        def step(self, *args, **kwargs):
            super().step(*args, **kwargs)
            [group] = self.param_groups
            seen.append((group["lr"], [parameter.detach().clone() for parameter in group["params"]]))

    monkeypatch.setattr("mnist_pipeline.ml.training.AdamW", Watched)
    return seen


@pytest.mark.parametrize(("batch_size", "count"), [(640, 1), (320, 2), (214, 3), (160, 4)])
def test_trainings_of_a_few_steps_reach_the_peak_rate_and_end_near_zero(splits, steps, batch_size, count):
    [epoch] = train(settings(epochs=1, batch_size=batch_size), splits).history
    rates = [rate for rate, _ in steps]
    assert len(rates) == count
    if count == 1:  # the peak comes after it
        assert epoch.learning_rate == pytest.approx(settings().learning_rate)
    else:
        assert max(rates) == pytest.approx(settings().learning_rate)
        assert epoch.learning_rate < settings().learning_rate / 1000


@pytest.mark.parametrize(("ema_epochs", "decay"), [(0.0, 0.0), (0.5, math.exp(-1 / 2)), (2.0, math.exp(-1 / 8))])
def test_the_weights_are_an_average_over_the_epochs_asked_for(splits, tmp_path, steps, ema_epochs, decay):
    chosen = settings(epochs=1, batch_size=160, ema_epochs=ema_epochs)
    result = train(chosen, splits, checkpoint_dir=tmp_path)
    assert len(steps) == 4
    average = steps[0][1]
    for _, parameters in steps[1:]:
        average = [decay * old + (1 - decay) * new for old, new in zip(average, parameters, strict=True)]
    found = model_from_bytes(result.weights, chosen, SPEC).parameters()
    for expected, parameter in zip(average, found, strict=True):
        torch.testing.assert_close(parameter, expected)
    [checkpoint] = tmp_path.rglob(FILE_NAME)
    tensors = load_file(checkpoint)
    statistics = [name for name in tensors if name.startswith("best/") and name.endswith("running_mean")]
    last = {name: torch.equal(tensors[name], tensors[f"model/{name[5:]}"]) for name in statistics}
    assert set(last.values()) == {ema_epochs == 0}  # batch norm's statistics are averaged with the weights


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"amx_bf16": True}, "bfloat16"), ({"avx512_bf16": True}, "bfloat16"), ({"avx2": True}, "float32")],
    ids=str,
)
def test_precision_auto_follows_the_processor(splits, monkeypatch, capabilities, precision):
    if platform.machine() == "x86_64":
        assert set(capabilities) <= set(torch.cpu.get_capabilities())
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    assert train(settings(epochs=1, precision="auto", device="cpu"), splits).precision == precision


def test_bfloat16_learns_as_well_as_float32(splits):
    both = [train(settings(epochs=4, precision=precision), splits) for precision in ("float32", "bfloat16")]
    accuracies = [result.history[result.best_epoch - 1].validation_accuracy for result in both]
    assert min(accuracies) > 0.85
    assert abs(accuracies[0] - accuracies[1]) < 0.05
    assert [result.precision for result in both] == ["float32", "bfloat16"]


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"optimizer": "sgd"},
        {"schedule": "step", "step_size": 1},
        {"ema_epochs": 0.0},
        {"precision": "bfloat16"},
    ],
    ids=str,
)
def test_a_resumed_training_gives_the_weights_of_an_uninterrupted_one(splits, tmp_path, change):
    chosen = settings(epochs=4, **change)
    whole = train(chosen, splits)

    def die_after_second(metrics):
        if metrics.epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        train(chosen, splits, die_after_second, tmp_path)
    seen: list[EpochMetrics] = []
    resumed = train(chosen, splits, seen.append, tmp_path)
    assert resumed.resumed_after == 2
    assert [metrics.epoch for metrics in seen] == [3, 4]
    assert resumed.weights == whole.weights
    assert [m.validation_loss for m in resumed.history] == [m.validation_loss for m in whole.history]
    discard_checkpoint(chosen, splits, tmp_path)
    assert list(tmp_path.rglob(FILE_NAME)) == []


def test_a_checkpoint_of_other_settings_or_damaged_is_not_resumed(splits, tmp_path, reference):
    train(settings(), splits, checkpoint_dir=tmp_path)
    assert train(settings(seed=1), splits, checkpoint_dir=tmp_path).resumed_after == 0
    for path in tmp_path.rglob(FILE_NAME):
        path.write_bytes(path.read_bytes()[:1000])
    again = train(settings(), splits, checkpoint_dir=tmp_path)
    assert again.resumed_after == 0
    assert again.weights == reference.weights


def _train_and_stop_in_the_fifth_epoch(splits, folder):
    torch.set_num_threads(1)

    def tell(metrics):
        if metrics.epoch == 3:
            (folder / "third").touch()
        if metrics.epoch == 5:
            threading.Event().wait()

    train(settings(epochs=8), splits, tell, folder)


def test_kill_9_loses_at_most_one_epoch(splits, tmp_path):
    """It comes at any moment from the end of the third epoch to the end of the fifth."""
    worker = multiprocessing.get_context("spawn").Process(
        target=_train_and_stop_in_the_fifth_epoch, args=(splits, tmp_path)
    )
    worker.start()
    while not (tmp_path / "third").exists():
        assert worker.is_alive()
        time.sleep(0.01)
    worker.kill()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    result = train(settings(epochs=8), splits, checkpoint_dir=tmp_path)
    assert 2 <= result.resumed_after <= 5
    assert len(result.history) == 8


def test_the_inference_batch_size_changes_no_prediction(splits, trained):
    model = model_from_bytes(trained.weights, settings(), SPEC)
    images = splits.test.images
    one, few, usual = (predict_logits(model, images, SPEC, size) for size in (1, 7, BATCH_SIZE))
    np.testing.assert_allclose(one, usual, atol=1e-5)
    np.testing.assert_allclose(few, usual, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_what_a_gpu_trained_predicts_alike_on_the_cpu(splits):
    on_gpu = settings(device="cuda", precision="auto")
    result = train(on_gpu, splits)
    assert train(on_gpu, splits).weights == result.weights
    model = model_from_bytes(result.weights, on_gpu, SPEC)
    on_cpu = predict_logits(model, splits.test.images, SPEC)
    np.testing.assert_allclose(predict_logits(model.to("cuda"), splits.test.images, SPEC), on_cpu, atol=1e-2)


def test_devices():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'cuda' is not available here; there is"):
            train(settings(device="cuda"), None)  # type: ignore[arg-type]


def test_weights_that_are_not_finite_are_refused(trained):
    from safetensors.numpy import load, save

    tensors = load(trained.weights)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 4)
    tensors[name].flat[3] = np.nan
    with pytest.raises(ModelError, match=name):
        model_from_bytes(save(tensors), settings(), SPEC)


@pytest.mark.parametrize("damage", ["tensors", "state", "header"])
def test_a_checkpoint_whose_content_was_changed_is_not_gone_on_with(splits, tmp_path, damage):
    """A flipped byte anywhere: training begins anew, and gives the same weights."""
    settings = TrainingSettings(**TINY | {"epochs": 2})

    class Cut(Exception):
        pass

    def cut(metrics) -> None:
        raise Cut

    with pytest.raises(Cut):
        train(settings, splits, cut, tmp_path)
    [path] = tmp_path.rglob(FILE_NAME)
    data = bytearray(path.read_bytes())
    place = {"tensors": len(data) - 100, "state": data.index(b"best_epoch") + 3, "header": 3}[damage]
    data[place] ^= 1
    path.write_bytes(bytes(data))
    result = train(settings, splits, checkpoint_dir=tmp_path)
    assert result.resumed_after == 0
    assert result.weights == train(settings, splits).weights
