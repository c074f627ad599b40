"""Other data sets through the whole life, by settings alone: from raw data to corrections and retraining."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnist_pipeline.environment import Environment
from mnist_pipeline.task.dataset import Dataset
from mnist_pipeline.task.known.mnist import MNIST
from mnist_pipeline.task.preprocessing import prepare, read_image
from mnist_pipeline_tests.conftest import Pipeline, check_results, metadata
from mnist_pipeline_tests.live import wait_until
from mnist_pipeline_tests.serve.service import Service
from mnist_pipeline_tests.serve.test_feedback import files
from mnist_pipeline_tests.serve.test_predict import error
from mnist_pipeline_tests.task.drawing import encode
from mnist_pipeline_tests.task.others import SMALL, photo, write_idx, write_photos, write_signs
from mnist_pipeline_tests.task.shapes import sign

SIGNS = {**SMALL, "mirrored": False, "conv_channels": [16, 32, 64], "epochs": 8, "rotation_degrees": 2.0}


class Task(NamedTuple):
    """A data set in a folder, and what is to be expected of it."""

    variables: dict[str, str]
    settings: dict[str, Any]
    least_accuracy: float
    picture: Image.Image
    """An upload, as a person would send it."""
    label: int
    """What it shows."""


def fashion(folder: Path) -> Task:
    write_idx(folder, "fashion_mnist", train=40, test=10)
    return Task({"DATASET": "fashion_mnist"}, SIGNS, 0.85, sign(0, 28, np.random.default_rng(99)), 0)


def letters(folder: Path) -> Task:
    write_idx(folder, "emnist_letters", train=30, test=8)
    return Task({"DATASET": "emnist_letters"}, SIGNS, 0.85, sign(25, 28, np.random.default_rng(99)), 25)


def colours(folder: Path) -> Task:
    write_photos(folder, ("Red ball", "box", "cross"), 60)
    picture = photo(1, np.random.default_rng(99), (300, 200))
    return Task({"DATASET": "folder", "DATASET_NAME": "shapes", "IMAGE_SIZE": "48x40"}, SMALL, 0.66, picture, 1)


def many(folder: Path) -> Task:
    write_signs(folder, classes=120, count=12)
    picture = sign(119, 32, np.random.default_rng(99))
    return Task({"DATASET": "folder", "DATASET_NAME": "signs"}, SIGNS, 0.5, picture, 119)


def pipeline_of(task: Task, folder: Path, instance: dg.DagsterInstance) -> Pipeline:
    variables = {"DATASET_DIR": str(folder / "data"), "STORAGE_ROOT": str(folder / "storage")}
    return Pipeline(Environment.read(task.variables | variables), instance)


@pytest.mark.parametrize("make", [fashion, letters, colours, many])
def test_the_whole_life(make, tmp_path, instance):
    task = make(tmp_path / "data")
    pipeline = pipeline_of(task, tmp_path, instance)
    gate = {} if task.least_accuracy != 0.5 else {"accuracy_threshold": task.least_accuracy}
    steps = {"digit_classifier": task.settings, "production_digit_classifier": gate}
    result = pipeline.run(**steps)
    dataset: Dataset = result.output_for_node("raw_mnist_data")
    spec = dataset.spec
    assert all(check_results(result).values())
    assert metadata(result, "model_evaluation")["test_accuracy"] >= task.least_accuracy
    assert f"reaches {task.least_accuracy:.2f}" in pipeline.store.production().reason
    named = [row.data["class"] for row in metadata(result, "raw_mnist_data")["classes"].records]
    assert named == list(spec.class_names)
    table = pq.read_table(result.output_for_node("batch_digit_predictions").path)
    assert table.column("class").to_pylist() == [spec.class_names[label] for label in table.column("label").to_pylist()]
    assert (np.array(table.column("label")) == dataset.test.labels).mean() >= task.least_accuracy
    place = Path(pipeline.environment.place("labelled_dir", "labelled"))
    assert spec.name in place.parts  # apart from the places of other tasks
    corrected = (task.label + 1) % spec.classes
    with Service(pipeline.store, place) as service:
        [prediction] = service.predict(encode(task.picture), prepared=True).json()["predictions"]
        assert (prediction["label"], prediction["class"]) == (task.label, spec.class_names[task.label])
        assert np.array_equal(prediction["prepared"], prepare(task.picture, spec))
        document = service.client.get("/openapi.json").json()
        body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
        for example in body["examples"].values():
            assert service.client.post("/predict", json=example["value"]).status_code == 200
        wrong = {"image": prediction["prepared"], "label": corrected}
        stored = service.client.post("/corrections", json=wrong).json()["id"]
        assert files(place) == [f"{spec.class_folders[corrected]}/{stored}.png"]
        stale = wrong | {"class": spec.class_names[task.label]}  # of a page that was opened when classes were others
        assert error(service.client.post("/corrections", json=stale))[:2] == (409, "other_classes")
    joined = pipeline.run("processed_mnist_data", processed_mnist_data={"held_out_fraction": 0})
    assert metadata(joined, "processed_mnist_data")["labelled_digits_joined"] == 1
    again = pipeline.run("digit_classifier", "model_evaluation", "production_digit_classifier", **steps)
    assert metadata(again, "digit_classifier")["model"] != metadata(result, "digit_classifier")["model"]


def test_models_of_another_task_are_refused_by_gate_predictions_and_service(tmp_path, pipeline, instance):
    """A store can hold both; deployed is one."""
    pipeline.run("raw_mnist_data", "processed_mnist_data", "digit_classifier")
    first = pipeline.run("model_evaluation", "production_digit_classifier")
    deployed = pipeline.store.production().version
    task = fashion(tmp_path / "data")
    variables = {"DATASET_DIR": str(tmp_path / "data"), "MODEL_STORE": pipeline.environment.model_address()}
    other = Pipeline(
        Environment.read(task.variables | variables | {"STORAGE_ROOT": str(tmp_path / "storage")}), instance
    )
    steps = ("raw_mnist_data", "processed_mnist_data", "digit_classifier", "model_evaluation")
    other.run(*steps, digit_classifier=task.settings)
    message = f"{deployed} is a model of mnist, not of fashion_mnist"
    for step in ("production_digit_classifier", "digit_predictions", "batch_digit_predictions"):
        refused = other.run(step, raise_on_error=False)
        assert not refused.success
        [failure] = refused.get_step_failure_events()
        assert message in str(failure.event_specific_data)
    assert first.success
    assert len(other.store.versions()) == 2
    force = {"strategy": "force", "reason": "another task now", "accuracy_threshold": None}
    assert other.run("production_digit_classifier", production_digit_classifier=force).success
    assert other.store.manifest(other.store.production().version).task.name == "fashion_mnist"
    with Service(other.store, task="fashion_mnist") as service:
        assert service.client.get("/model").json()["task"] == "fashion_mnist"
        other.store.rollback("a test", "test", to=deployed)
        wait_until(lambda: service.client.get("/readyz").json()["problems"], "the refusal")
        assert service.client.get("/model").json()["task"] == "fashion_mnist"
    with Service(other.store, task="fashion_mnist") as service:
        assert error(service.client.get("/model"))[:2] == (503, "no_model")
        assert service.client.get("/openapi.json").status_code == 200
        assert service.client.get("/corrections").json() == {"enabled": False, "waiting": 0}


def test_a_class_that_was_added_is_left_out_of_the_comparison_and_said(tmp_path, instance):
    folder = tmp_path / "data"
    task = colours(folder)
    shutil.move(folder / "Red ball", tmp_path / "Red ball")  # the first by its name: all labels change
    pipeline = pipeline_of(task, tmp_path, instance)
    gate = {"accuracy_threshold": 0.4}
    steps = ("raw_mnist_data", "processed_mnist_data", "digit_classifier", "model_evaluation")

    def train_and_decide() -> dg.ExecuteInProcessResult:
        last = "production_digit_classifier"
        return pipeline.run(*steps, last, digit_classifier=SMALL, production_digit_classifier=gate)

    train_and_decide()
    incumbent = pipeline.store.production()
    shutil.move(tmp_path / "Red ball", folder)
    result = train_and_decide()
    decision = pipeline.store.decisions()[0]
    [comparison] = decision.comparisons
    assert (comparison.version, comparison.images, comparison.images_of_other_classes) == (incumbent.version, 24, 12)
    assert "24 images of the classes that both know, which 12 are not, of the incumbent" in decision.reason
    assert comparison.test_accuracy > 0.6  # its labels are other numbers for the same names
    assert metadata(result, "production_digit_classifier")["comparisons"].records


def test_a_class_that_was_renamed_is_another_model_though_its_weights_are_the_same(tmp_path, instance):
    task = colours(tmp_path / "data")
    pipeline = pipeline_of(task, tmp_path, instance)
    steps = ("raw_mnist_data", "processed_mnist_data", "digit_classifier", "model_evaluation")
    gate = {"accuracy_threshold": 0.4}
    for folder in ("cross", "crossing"):
        if folder != "cross":
            shutil.move(tmp_path / "data" / "cross", tmp_path / "data" / folder)
        pipeline.run(*steps, "production_digit_classifier", digit_classifier=SMALL, production_digit_classifier=gate)
    before, after = (entry for entry in reversed(pipeline.store.decisions()))
    assert before.weights_sha256 == after.weights_sha256
    assert after.outcome == "promoted"
    assert pipeline.store.manifest(pipeline.store.production().version).task.class_names[2] == "crossing"
    assert "24 images of the classes that both know, which 12 are not" in after.reason


def test_how_pictures_are_prepared_is_told_by_their_kind():
    cutouts = MNIST.model_copy(update={"pictures": "cutouts"})
    thing = Image.new("L", (200, 100), 255)
    thing.paste(90, (60, 40, 100, 60))  # grey, 40 by 20, on white
    image = prepare(thing, cutouts)
    assert image.shape == (28, 28)
    assert np.flatnonzero(image.any(1)).tolist() == list(range(7, 21))  # as wide as the image, in its middle
    assert image[14].min() > 200
    assert np.array_equal(prepare(Image.fromarray(image), cutouts), image)
    bright = Image.fromarray(np.full((28, 28), 200, np.uint8))
    assert np.array_equal(prepare(bright, cutouts), np.asarray(bright))  # of the size: taken to be one
    photos = MNIST.model_copy(
        update={"pictures": "photos", "image_shape": (30, 20, 3), "mean": (0.5,) * 3, "std": (1.0,) * 3}
    )
    wide = Image.new("RGB", (300, 90), (10, 20, 30))
    assert np.array_equal(prepare(wide, photos), np.full((30, 20, 3), (10, 20, 30)))
    deep = Image.fromarray((np.arange(3000).reshape(50, 60) * 20).astype(np.uint16))
    assert np.ptp(read_image(encode(deep), photos)) > 200  # 16 bits, by their own range
