"""What is served is what was trained, and nothing in a model file is executed or followed."""

import hashlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.numpy import save_file
from torch import nn

from mnist_pipeline.ml.data import to_arrays
from mnist_pipeline.ml.errors import ModelError
from mnist_pipeline.ml.export import TEMPERATURES, export, fit_temperature, require_same, to_onnx
from mnist_pipeline.ml.manifest import ModelManifest
from mnist_pipeline.ml.model import model_from_bytes, predict_logits
from mnist_pipeline.ml.onnx_file import require_standard
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.ml.unlikeness import fit_unlikeness
from mnist_pipeline.task.dataset import LabelledImages
from mnist_pipeline_tests.task.examples import SPEC, TINY, take

NETWORK = TrainingSettings(**TINY).architecture()
MANIFEST = ModelManifest(name="a version", weights_sha256="", task=SPEC, network=NETWORK)


@pytest.fixture(scope="module")
def exported(trained, splits):
    return export(trained.weights, NETWORK, splits)


def test_the_file_says_what_the_network_said_at_the_temperature(exported, trained, splits):
    logits = predict_logits(model_from_bytes(trained.weights, NETWORK, SPEC), splits.test.images, SPEC)
    expected = (logits / exported.temperature).softmax(1).numpy()
    found = Predictor(MANIFEST, exported.onnx).predict(splits.test.images)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.array_equal(found.argmax(1), expected.argmax(1))
    assert exported.temperature != 1


def test_equal_weights_and_images_give_equal_bytes_in_another_process(exported, trained, splits, tmp_path):
    weights, data = tmp_path / "weights", tmp_path / "splits.safetensors"
    weights.write_bytes(trained.weights)
    arrays, texts = to_arrays(splits)
    save_file(arrays, data, texts)
    code = f"""
import hashlib
from pathlib import Path
from mnist_pipeline.files.tensors import mapped
from mnist_pipeline.ml.data import splits_from_arrays
from mnist_pipeline.ml.export import export
from mnist_pipeline_tests.ml.test_export import NETWORK
splits = splits_from_arrays(*mapped(Path({str(data)!r}), "splits"))
made = export(Path({str(weights)!r}).read_bytes(), NETWORK, splits)
print(made.temperature, hashlib.sha256(made.onnx).hexdigest())
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.split() == [str(exported.temperature), hashlib.sha256(exported.onnx).hexdigest()]


def test_the_standard_checker_accepts_the_file_and_it_is_whole(exported):
    """The library `onnx` reads it as we do: one input and one output, no data elsewhere."""
    model = onnx.load_from_string(exported.onnx)
    onnx.checker.check_model(model, full_check=True)
    assert {part.domain for part in model.opset_import} == {""}
    assert [port.name for port in model.graph.input] == ["images"]


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_the_temperature_is_the_one_that_the_labels_were_drawn_at(temperature):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((20_000, 5), generator=generator) * 3
    labels = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator).squeeze(1)
    assert fit_temperature(logits, labels.numpy().astype(np.uint8)) == pytest.approx(temperature, rel=0.05)


def test_a_network_without_mistakes_is_not_made_ever_more_certain():
    logits = torch.eye(4) * 2
    assert fit_temperature(logits, np.arange(4, dtype=np.uint8)) == pytest.approx(TEMPERATURES[0], rel=0.01)


class Untraceable(nn.Module):
    """It looks at the images in Python, which a trace cannot record."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, inputs):
        logits = inputs.flatten(1)[:, 300 : 300 + SPEC.classes] * self.weight
        return logits if inputs.max() <= 0 else -logits


def test_a_file_that_is_not_the_network_is_refused(splits):
    network = Untraceable().eval()
    with pytest.warns(torch.jit.TracerWarning):
        made = to_onnx(network, SPEC)
    logits = predict_logits(network, splits.test.images, SPEC)
    with pytest.raises(ModelError, match=r"the exported model is not the trained one: \d+ of 200 labels differ"):
        require_same(made, SPEC, splits.test.images, logits)


def model_of(nodes, domain="", initializers=(), **more) -> onnx.ModelProto:
    shape: list[str | int | None] = ["N", *SPEC.image_shape]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", SPEC.classes])],
        initializer=list(initializers),
    )
    operators = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=operators, **more)


def external(name: str = "w") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    return tensor


def inside() -> onnx.ModelProto:
    """External data in a branch of a branch."""
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Constant", [], ["y"], value=external())], "inner", [], [value])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)
    outer = helper.make_graph([branch], "outer", [], [value])
    return model_of([helper.make_node("If", ["c"], ["z"], then_branch=outer, else_branch=outer)])


FUNCTION = helper.make_function(
    "mine", "Own", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])], [helper.make_opsetid("", 17)]
)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (model_of([helper.make_node("Foo", ["images"], ["probabilities"], domain="mine")], "mine"), "standard: mine"),
        (model_of([helper.make_node("Gelu", ["images"], ["probabilities"], domain="com.microsoft")]), "com.microsoft"),
        (model_of([], initializers=[external()]), "data of w lie outside"),
        (inside(), "data of w lie outside"),
        (model_of([], functions=[FUNCTION]), "functions"),
    ],
    ids=["a domain", "a domain that the runtime knows", "data elsewhere", "data elsewhere, within", "functions"],
)
def test_what_is_not_of_the_standard_is_refused(model, message):
    with pytest.raises(ModelError, match=message):
        Predictor(MANIFEST, model.SerializeToString())


def test_a_field_that_is_sent_twice_hides_nothing():
    """Protocol buffers merge what comes twice: the second graph must be looked at, too."""
    good, bad = model_of([]).SerializeToString(), model_of([], initializers=[external()]).SerializeToString()
    with pytest.raises(ModelError, match="data of w lie outside"):
        require_standard(good + bad)
    with pytest.raises(ModelError, match="data of w lie outside"):
        require_standard(bad + good)


def test_another_format_of_the_runtime_is_not_taken_for_onnx(exported):
    """The runtime knows files of its own by four letters, which a parser of protocol buffers passes over."""
    unknown_field = b"\x12\x06\0\0ORTM"
    require_standard(unknown_field + exported.onnx)
    Predictor(MANIFEST, unknown_field + exported.onnx).verify()  # as ONNX, in which the field is the producer's name


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"{}", b"\x08\x08", bytes(100)])
def test_what_is_no_model_is_refused(content):
    with pytest.raises(ModelError, match="ONNX"):
        Predictor(MANIFEST, content)


def test_a_model_of_another_task_or_that_cannot_be_run_is_refused(exported):
    other = MANIFEST.model_copy(update={"task": SPEC.model_copy(update={"class_names": ("one", "two")})})
    with pytest.raises(ModelError, match="are its task"):
        Predictor(other, exported.onnx)
    with pytest.raises(ModelError, match="the runtime cannot load the model"):
        Predictor(MANIFEST, model_of([helper.make_node("NoSuch", ["images"], ["probabilities"])]).SerializeToString())


def test_a_device_that_is_not_there_is_an_error(exported):
    with pytest.raises(ValueError, match="device 'cuda' is not available"):
        Predictor(MANIFEST, exported.onnx, device="cuda")


def test_prediction_in_parts_changes_nothing(exported, splits, monkeypatch):
    predictor = Predictor(MANIFEST, exported.onnx, threads=1)
    images = splits.test.images
    usual = predictor.predict(images)
    for part_bytes in (1, 7 * images[0].nbytes, 64 * images[0].nbytes):
        monkeypatch.setattr("mnist_pipeline.ml.predictor.BATCH_BYTES", part_bytes)
        np.testing.assert_allclose(predictor.predict(images), usual, atol=1e-6)


def test_predicting_needs_nothing_that_training_needs(tmp_path: Path, exported):
    (tmp_path / "model.onnx").write_bytes(exported.onnx)
    code = f"""
import sys
from pathlib import Path
import numpy as np
from mnist_pipeline.ml.manifest import ModelManifest
from mnist_pipeline.ml.predictor import Predictor
from mnist_pipeline.task.preprocessing import read_image
manifest = ModelManifest.model_validate_json({MANIFEST.model_dump_json()!r})
Predictor(manifest, Path({str(tmp_path / "model.onnx")!r}).read_bytes()).verify()
print(sorted({{"torch", "dagster", "matplotlib", "sklearn", "scipy", "pyarrow", "onnx"}} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"


class Twice(nn.Module):
    """A convolution that works twice on each image, and at two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, SPEC.classes)

    def forward(self, inputs):
        once = self.first(inputs)
        again = self.first(nn.functional.avg_pool2d(once.mean(1, keepdim=True), 2))
        return self.last(again.mean((2, 3)))


class Plain(nn.Module):
    """A network without a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(math.prod(SPEC.image_shape), SPEC.classes)

    def forward(self, inputs):
        return self.last(inputs.flatten(1))


@pytest.mark.parametrize("build", [Twice, Plain])
def test_unlikeness_is_told_of_networks_of_any_kind(build, splits):
    torch.manual_seed(0)
    network = build().eval()
    unlikeness, scores = fit_unlikeness(network, SPEC, splits.train, splits.validation.images)
    assert 0 < (scores > 0).mean() <= 0.02
    found = Predictor(MANIFEST, to_onnx(network, SPEC, 1.0, unlikeness)).answer(splits.validation.images).unlike
    assert found is not None
    assert np.array_equal(found, scores > 0)


@pytest.mark.parametrize("per_class", [1, 2])
def test_unlikeness_is_told_where_there_are_hardly_any_images(trained, splits, per_class):
    few = splits._replace(train=take(splits.train, per_class), validation=take(splits.validation, 1))
    exported = export(trained.weights, NETWORK, few)
    noise = np.random.default_rng(0).integers(0, 256, (20, *SPEC.array_shape), np.uint8)
    unlike, found = exported.answers.unlike, Predictor(MANIFEST, exported.onnx).answer(noise).unlike
    assert unlike is not None
    assert unlike.sum() == 1  # a hundredth of ten images
    assert found is not None
    assert found.mean() > 0.9


def test_a_class_without_training_images_takes_nothing_away(trained, splits):
    some = splits.train.labels != 3
    few = splits._replace(train=LabelledImages(splits.train.images[some], splits.train.labels[some]))
    assert np.isfinite(export(trained.weights, NETWORK, few).answers.probabilities).all()
