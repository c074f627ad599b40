"""Photos in folders through the whole life: from raw data to served predictions, corrections and retraining."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from mnist_pipeline.environment import Environment
from mnist_pipeline_tests.conftest import Pipeline, check_results, metadata
from mnist_pipeline_tests.serve.service import Service
from mnist_pipeline_tests.task.drawing import encode
from mnist_pipeline_tests.task.others import SMALL, photo, write_photos

CLASSES = ("ball", "box", "cross")


def test_the_whole_life(tmp_path, instance):
    write_photos(tmp_path / "shapes", CLASSES, 60)
    variables = {"DATASET": "folder", "DATASET_DIR": str(tmp_path / "shapes"), "IMAGE_SIZE": "48x40"}
    pipeline = Pipeline(Environment.read(variables | {"STORAGE_ROOT": str(tmp_path / "storage")}), instance)
    result = pipeline.run(digit_classifier=SMALL, production_digit_classifier={})
    assert all(check_results(result).values())
    assert metadata(result, "model_evaluation")["test_accuracy"] > 0.66
    table = pq.read_table(result.output_for_node("batch_digit_predictions").path)
    assert set(table.column("class").to_pylist()) <= set(CLASSES)
    labelled = Path(pipeline.environment.place("labelled_dir", "labelled"))
    with Service(pipeline.store, labelled) as service:
        picture = encode(photo(1, np.random.default_rng(99), (300, 200)))
        [prediction] = service.predict(picture, prepared=True).json()["predictions"]
        assert prediction["class"] == "box"
        correction = {"image": prediction["prepared"], "label": 2, "class": "cross"}
        assert service.client.post("/corrections", json=correction).status_code in (200, 201)
    again = pipeline.run("processed_mnist_data", "digit_classifier", digit_classifier=SMALL)
    assert metadata(again, "processed_mnist_data")["labelled_digits_joined"] == 1
    assert metadata(again, "digit_classifier")["model"] != metadata(result, "digit_classifier")["model"]
