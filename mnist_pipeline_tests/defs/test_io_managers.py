"""The files between steps."""

import tracemalloc

import dagster as dg
import numpy as np
import pytest

from mnist_pipeline.defs.assets.processed_mnist_data import processed_data_checks
from mnist_pipeline.defs.io_managers import SafetensorsIOManager
from mnist_pipeline.files.errors import DataError
from mnist_pipeline.ml.data import split
from mnist_pipeline.ml.records import Splits
from mnist_pipeline.ml.settings import SplitSettings, TrainingSettings
from mnist_pipeline.ml.training import train
from mnist_pipeline.task.dataset import Dataset, LabelledImages, no_images
from mnist_pipeline.task.spec import TaskSpec

PHOTOS = TaskSpec(
    class_names=("cat", "dog"), image_shape=(64, 64, 3), mean=(0.5,) * 3, std=(0.25,) * 3, pictures="photos"
)
NETWORK = TrainingSettings(conv_channels=[4, 4, 4], hidden_units=[8], epochs=1, batch_size=32)


def test_no_step_holds_all_images_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("mnist_pipeline.files.tensors.SCRATCH_BYTES", 1)
    labels = np.arange(3000, dtype=np.uint8) % 2
    whole = np.random.default_rng(0).integers(0, 256, (3000, 64, 64, 3), np.uint8)  # 37 MB
    train_part, test_part = (LabelledImages(whole[part], labels[part]) for part in (slice(2500), slice(2500, None)))
    most: dict[str, int] = {}
    before = [0]

    def note(step: str) -> None:
        now, peak = tracemalloc.get_traced_memory()
        most[step] = peak - before[0]
        before[0] = now
        tracemalloc.reset_peak()

    @dg.asset(io_manager_key="files", dagster_type=dg.PythonObjectDagsterType(Dataset))
    def raw() -> Dataset:
        tracemalloc.start()
        return Dataset(train_part, test_part, "", False, PHOTOS)

    @dg.asset(io_manager_key="files", dagster_type=dg.PythonObjectDagsterType(Splits))
    def processed(raw: Dataset) -> Splits:
        note("the raw data is stored and read")
        splits = split(raw, no_images(PHOTOS), SplitSettings())
        note("the data is divided")
        assert all(result.passed for result in processed_data_checks(splits, raw, splits.held_out))
        note("the splits are checked")
        return splits

    @dg.asset
    def trained(processed: Splits) -> None:
        note("the splits are stored and read")
        assert (processed.train.images.shape, processed.train.labels.shape) == ((2000, 64, 64, 3), (2000,))
        assert any((processed.train.images[0] == image).all() for image in whole[:2500])
        train(NETWORK, processed)
        note("the network is trained")

    # Once before, for the imports.
    train(NETWORK, split(Dataset(test_part, test_part, "", False, PHOTOS), no_images(PHOTOS), SplitSettings()))
    try:
        manager = SafetensorsIOManager(base_path=str(tmp_path), endpoint_url=None)
        assert dg.materialize([raw, processed, trained], resources={"files": manager}).success
    finally:
        tracemalloc.stop()
    assert len(most) == 5
    assert {step: held for step, held in most.items() if held > 18 << 20} == {}  # half of the images


def test_a_file_of_something_else_is_an_error_that_names_it(tmp_path):
    @dg.asset(io_manager_key="files", dagster_type=dg.PythonObjectDagsterType(Dataset))
    def raw() -> Dataset:
        labels = np.arange(2, dtype=np.uint8)
        part = LabelledImages(np.zeros((2, 64, 64, 3), np.uint8), labels)
        return Dataset(part, part, "", False, PHOTOS)

    @dg.asset
    def read_again(raw: Splits) -> None:
        raise AssertionError("it is none")

    manager = SafetensorsIOManager(base_path=str(tmp_path), endpoint_url=None)
    with pytest.raises(DataError, match=r"raw\.safetensors is no Splits \('validation.images'\)\. Materialize"):
        dg.materialize([raw, read_again], resources={"files": manager})
    (tmp_path / "raw.safetensors").write_bytes(b"half")
    with pytest.raises(DataError, match=r"raw\.safetensors is damaged"):
        dg.materialize([raw, read_again], resources={"files": manager}, selection=["read_again"])
