"""The notebook, cell by cell in a real kernel, and what it is made of."""

import os
from pathlib import Path

import dagster as dg
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from mnist_pipeline import notebook
from mnist_pipeline.stores import NothingDeployed
from mnist_pipeline_tests.conftest import Pipeline
from mnist_pipeline_tests.live import OWN_VARIABLES, PROJECT
from mnist_pipeline_tests.task.examples import TINY

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
CHAIN = (
    "raw_mnist_data",
    "processed_mnist_data",
    "digit_classifier",
    "model_evaluation",
    "production_digit_classifier",
)
FORCE = {"strategy": "force", "reason": "a test", "serve_check": "off"}


@pytest.fixture
def deployment(pipeline: Pipeline, tmp_path, monkeypatch) -> Pipeline:
    """Two versions, and the variables by which a notebook finds them."""
    for seed in (0, 1):
        pipeline.run(*CHAIN, digit_classifier=TINY | {"seed": seed}, production_digit_classifier=FORCE)
    variables(pipeline, tmp_path, monkeypatch)
    return pipeline


def variables(pipeline: Pipeline, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    environment = pipeline.environment
    # Also those of before, which another name would contradict.
    for name in OWN_VARIABLES | {name for name in os.environ if name.endswith(("_DIR", "_SOURCE"))}:
        monkeypatch.delenv(name, raising=False)
    for name in environment.model_fields_set:
        monkeypatch.setenv(name.upper(), str(getattr(environment, name)))
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    notebook.definitions.cache_clear()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_every_cell_works(path, deployment, tmp_path):
    read = nbformat.read(path, as_version=4)
    nbformat.validate(read)
    assert all(not cell.get("outputs") for cell in read.cells)  # nothing is committed that a run made
    NotebookClient(read, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in read.cells for output in cell.get("outputs", [])]
    assert not [output for output in shown if output.output_type == "error"]
    pages = [output.data["text/html"] for output in shown if "text/html" in output.get("data", {})]
    assert any("Images on which they differ" in page for page in pages)
    assert any("image/png" in output.get("data", {}) for output in shown)


def test_what_it_says_is_what_is_stored(deployment):
    store = deployment.store
    model = notebook.deployed()
    assert model.version == store.production().version
    splits = notebook.value("processed_mnist_data")
    answers = model.predict(splits.test.images)
    evaluation = notebook.value("model_evaluation")
    assert (answers.argmax(1) == splits.test.labels).mean() == evaluation.test.accuracy
    assert list(notebook.models().index) == store.versions()
    found = notebook.compare("deployed", store.versions()[1])
    assert found.scores.loc["accuracy on the test images", "first"] == pytest.approx(evaluation.test.accuracy)
    assert np.isfinite(found.slices["gain"].to_numpy(float)).all()
    again = notebook.materialize("model_evaluation", model_evaluation={"worst_mistakes": 3})
    assert again.output_for_node("model_evaluation") == evaluation
    with pytest.raises(dg.DagsterInvalidDefinitionError):
        notebook.materialize("none")


def test_where_nothing_is_deployed_it_says_so(pipeline, tmp_path, monkeypatch):
    variables(pipeline, tmp_path, monkeypatch)
    with pytest.raises(NothingDeployed, match="nothing is deployed yet: make run"):
        notebook.deployed()
