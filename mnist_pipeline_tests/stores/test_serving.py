"""What cannot be served is not promoted, whatever its score; the service is asked in a process of its own."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, load_from_string
from torch import nn

from mnist_pipeline.ml.export import to_onnx
from mnist_pipeline.ml.settings import DeploymentSettings, TrainingSettings
from mnist_pipeline.ml.suite import suite
from mnist_pipeline.stores import LocalModelStore
from mnist_pipeline.stores.deployment import CannotDecide
from mnist_pipeline.task.spec import TaskSpec
from mnist_pipeline_tests.ml.test_export import external
from mnist_pipeline_tests.ml.test_export import model_of as model_with
from mnist_pipeline_tests.task.examples import SPEC, TINY
from mnist_pipeline_tests.versions import decide_by_kept_labels, exported, save

SETTINGS = TrainingSettings(**TINY)


class Answers(nn.Module):
    """A network that answers the same about every image: logits (classes,)."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, inputs):
        return self.logits + 0 * inputs.flatten(1)[:, :1]


def always(label: int, spec: TaskSpec = SPEC) -> bytes:
    return to_onnx(Answers(torch.eye(spec.classes)[label] * 20).eval(), spec)


def renamed(onnx: bytes) -> bytes:
    """The output has another name."""
    model = load_from_string(onnx)
    model.graph.node[-1].output[0] = model.graph.output[0].name = "scores"
    return model.SerializeToString()


def model_of(*nodes, **more) -> bytes:
    return model_with(nodes, **more).SerializeToString()


def too_large() -> bytes:
    """A step of it asks for more memory than there is."""
    size = helper.make_tensor("size", TensorProto.INT64, [3], [1 << 20, 1 << 20, 1 << 10])
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["total"], keepdims=0),
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("Slice", ["flat", "zero", "classes", "one"], ["some"]),
        helper.make_node("Add", ["some", "total"], ["sum"]),
        helper.make_node("Softmax", ["sum"], ["probabilities"]),
    ]
    numbers = {"zero": 0, "classes": SPEC.classes, "one": 1}
    more = [helper.make_tensor(name, TensorProto.INT64, [1], [value]) for name, value in numbers.items()]
    return model_of(*nodes, initializers=[size, *more])


COLOUR = SPEC.model_copy(update={"image_shape": (*SPEC.image_shape[:2], 3), "mean": (0.5,) * 3, "std": (1.0,) * 3})
FEWER = SPEC.model_copy(update={"class_names": SPEC.class_names[:-1]})
UNUSABLE = {
    "no ONNX file": lambda good: b"no model",
    "nothing but a zero": lambda good: b"\0",
    "half of the file": lambda good: good[: len(good) // 2],
    "a pickle": lambda good: b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07pickled\x94.",
    "an operator that there is not": lambda good: model_of(helper.make_node("NoSuch", ["images"], ["probabilities"])),
    "an operator of somebody's": lambda good: model_of(
        helper.make_node("Mine", ["images"], ["probabilities"], domain="mine"), domain="mine"
    ),
    "weights in another file": lambda good: model_of(
        helper.make_node("Identity", ["w"], ["probabilities"]), initializers=[external()]
    ),
    "another output": renamed,
    "images of another shape": lambda good: always(0, COLOUR),
    "fewer classes": lambda good: always(0, FEWER),
    "outputs that are no numbers": lambda good: to_onnx(Answers(torch.full((SPEC.classes,), torch.nan)).eval(), SPEC),
    "other answers than were scored": lambda good: always(3),
    "more memory than there is": lambda good: too_large(),
}


@pytest.fixture
def store(tmp_path) -> LocalModelStore:
    return LocalModelStore(base_path=str(tmp_path / "models"))


def decide(store, version, splits, predicted=None, **policy):
    """The gate about a version that is the best by the labels that are kept."""
    settings = DeploymentSettings(**{"accuracy_threshold": 0.05} | policy)
    return decide_by_kept_labels(store, version, splits, settings, predicted)


@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_cannot_be_served_is_not_promoted(store, trained, splits, kind):
    good = exported(trained.weights, SETTINGS.architecture().model_dump_json())
    version = save(store, trained, SETTINGS, onnx=UNUSABLE[kind](good))
    decision = decide(store, version, splits)
    print(kind, "->", decision.reason)
    assert decision.outcome == "refused"
    assert "but it cannot be served: " in decision.reason
    assert store.production() is None
    forced = decide(store, version, splits, strategy="force", reason="now", accuracy_threshold=None)
    assert (forced.outcome, store.production()) == ("refused", None)


def test_what_was_changed_after_it_was_saved_cannot_even_be_decided_about(store, trained, splits):
    version = save(store, trained, SETTINGS)
    key = f"{version.name}/model.onnx"
    data, token = store.read_object(key)
    store.replace_object(key, data[:-1] + bytes([data[-1] ^ 1]), token)
    with pytest.raises(CannotDecide, match=r"model\.onnx"):
        decide(store, version, splits)
    assert store.production() is None


def test_what_can_be_served_is_promoted_with_what_it_took(store, trained, splits):
    version = save(store, trained, SETTINGS, onnx=always(3))
    predicted = np.full(sum(len(one.labels) for one in suite(splits, "").sets), 3)
    slow = decide(store, version, splits, predicted, max_latency_ms=0.0001)
    assert slow.outcome == "refused"
    assert "more than max_latency_ms 0.0001" in slow.reason
    decision = decide(store, version, splits, predicted)
    assert decision.outcome == "promoted"
    taken = decision.serving
    assert taken.left_out is None
    assert taken.onnx_bytes == len(always(3))
    assert 0 < taken.median_ms <= taken.slowest_ms
    assert 50 < taken.memory_mib < 2_000
    assert taken.requests >= 32


def test_where_there_is_no_service_the_record_says_so(store, trained, splits, monkeypatch):
    monkeypatch.setattr("mnist_pipeline.stores.serving.SERVICE", "mnist_pipeline.no_such_service")
    version = save(store, trained, SETTINGS, onnx=b"no model")
    decision = decide(store, version, splits)
    assert decision.outcome == "promoted"
    assert decision.serving.left_out == "mnist_pipeline.no_such_service is not there"


def test_the_check_can_be_switched_off(store, trained, splits):
    decision = decide(store, save(store, trained, SETTINGS, onnx=b"no model"), splits, serve_check="off")
    assert (decision.outcome, decision.serving) == ("promoted", None)


def test_by_hand(store, trained, splits):
    good, bad = save(store, trained, SETTINGS), save(store, trained, SETTINGS, onnx=b"no model")
    command = [sys.executable, "-m", "mnist_pipeline.serve", "--store", store.base_path, "--check"]
    passed = subprocess.run([*command, good.name], capture_output=True, text=True, check=True)
    assert '"median_ms":' in passed.stdout
    failed = subprocess.run([*command, bad.name], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith(
        f"error: {bad.name} cannot be served: the model is not an ONNX file"
    )


def nearly(value: float, at: int) -> bytes:
    """A network of which one logit is no number that can be used."""
    logits = torch.zeros(SPEC.classes)
    logits[at] = value
    return to_onnx(Answers(logits).eval(), SPEC)


def with_classes(count: int) -> TaskSpec:
    return SPEC.model_copy(update={"class_names": tuple(f"class {number}" for number in range(count))})


def with_size(height: int, width: int) -> TaskSpec:
    return SPEC.model_copy(update={"image_shape": (height, width, 1)})


HEIGHT, WIDTH, _ = SPEC.image_shape
SIZES = [(height, width) for height in (HEIGHT - 1, HEIGHT, 2 * HEIGHT) for width in (WIDTH - 1, WIDTH, WIDTH + 4)]
BEGINNINGS = (b"", b"\x80\x04\x95", b"PK\x03\x04", b"<html>", b"ORTM", b"{}", b"\x08\x07", b"GIF89a")
OPERATORS = ("NoSuch", "Evil", "PyOp", "Tokenizer", "Conv9", "identity")


def many() -> dict[str, bytes | float]:
    """Files, or the share of a good one that is left."""
    return {
        **{f"always class {label}": always(label) for label in range(SPEC.classes)},
        **{f"{part} hundredths of the file": part / 100 for part in range(4, 100, 6)},
        **{
            f"{value} for class {at}": nearly(value, at)
            for value in (torch.nan, torch.inf)
            for at in range(SPEC.classes)
        },
        **{f"{count} classes": always(0, with_classes(count)) for count in range(2, 20) if count != SPEC.classes},
        **{f"{size} pixels": always(0, with_size(*size)) for size in SIZES if size != (HEIGHT, WIDTH)},
        **{f"noise after {begin!r}": begin + random.Random(0).randbytes(500) for begin in BEGINNINGS},
        **{
            f"the operator {name} of {domain!r}": model_of(
                helper.make_node(name, ["images"], ["probabilities"], domain=domain), domain=domain
            )
            for name in OPERATORS
            for domain in ("", "ai.onnx.contrib")
        },
    }


@pytest.mark.long
def test_of_many_versions_that_cannot_be_served_none_is_promoted(store, trained, splits):
    good = exported(trained.weights, SETTINGS.architecture().model_dump_json())
    files = {kind: made(good) for kind, made in UNUSABLE.items()}
    for kind, made in many().items():
        files[kind] = made if isinstance(made, bytes) else good[: int(len(good) * made)]
    assert len(files) >= 100
    for kind, onnx in files.items():
        version = save(store, trained, SETTINGS, onnx=onnx)
        decision = decide(store, version, splits)
        assert decision.outcome == "refused", kind
        assert "but it cannot be served: " in decision.reason, kind
    assert store.production() is None
