"""The whole graph at addresses of every kind, and a training that goes on where nothing is shared but a bucket."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mnist_pipeline.environment import PROJECT, Environment, EnvironmentInvalid
from mnist_pipeline.files.folders import walk
from mnist_pipeline.files.storage import read_bytes, storage_path, write_bytes
from mnist_pipeline.files.tensors import header_texts
from mnist_pipeline.ml.checkpoint import FILE_NAME
from mnist_pipeline.stores import store_from_environment
from mnist_pipeline_tests.conftest import Pipeline, check_results, metadata
from mnist_pipeline_tests.live import wait_until
from mnist_pipeline_tests.task.examples import TINY, embedded_images, png, variables_of


@pytest.fixture(params=["s3", "azure", "google", "memory"])
def variables(request: pytest.FixtureRequest, raw_folder: Path, tmp_path: Path) -> dict[str, str]:
    """A deployment that names one address."""
    more: dict[str, str] = {}
    match request.param:
        case "s3":
            address = f"s3://{request.getfixturevalue('s3_bucket')}/pipeline"
            more = {"S3_ENDPOINT_URL": request.getfixturevalue("s3_url")}
        case "azure":
            address = f"az://{request.getfixturevalue('azure_container')}/pipeline"
        case "google":
            address = f"gs://{request.getfixturevalue('google_bucket')}/pipeline"
        case _:
            address = f"memory://{tmp_path.name}"
    return {"STORAGE_ROOT": address, **variables_of(raw_folder)} | more


@pytest.fixture(autouse=True)
def no_models_of_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a fresh clone, whatever `make run` did in this one."""
    monkeypatch.setattr("mnist_pipeline.stores.addresses.PROJECT", tmp_path / "project")


OPENED: list[str] = []
"""The files that Python opened to write to, since `written` began."""


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str) and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
        OPENED.append(arguments[0])


@pytest.fixture
def written(instance: dg.DagsterInstance) -> Iterator[list[str]]:
    """The files that are opened to write to while the test runs, but those of Dagster's instance."""
    if not getattr(sys, "_notes_opened", False):
        sys.addaudithook(_note)  # there is no way to take one away again
        sys._notes_opened = True  # type: ignore[attr-defined]
    OPENED.clear()
    yield OPENED


def test_the_whole_graph(variables, instance, small_dataset, written):
    environment = Environment.read(variables)
    root, pipeline = environment.storage_root, Pipeline(environment, instance)
    new = embedded_images().train.images[-1]  # it is in no split of the tests
    folders = pipeline.defs.resources or {}
    for name, label in (("labelled_digits_dir", "4/"), ("prediction_input_dir", "")):
        folder: Any = folders[name].path()
        assert (folder is None) is (name == "prediction_input_dir")
        if folder is not None:
            write_bytes(folder / f"{label}four.png", png(new))
            write_bytes(folder / f"{label}.half.png", b"half")
    result = pipeline.run()
    assert all(check_results(result).values())
    told = metadata(result, "processed_mnist_data")
    assert told["labelled_digits_joined"] + told["labelled_digits_held_out"] == 1
    deployed = pipeline.store.production()
    assert pipeline.store.versions() == [deployed.version]
    assert pipeline.store.address.startswith(root.partition("://")[0])
    record = result.output_for_node("batch_digit_predictions")
    assert record.path.startswith(f"{root}/predictions/")
    assert record.images == len(small_dataset.test.labels)
    found = walk(storage_path(root, environment.s3_endpoint_url))
    kept = {name.partition("/")[0] for name in found.files}
    assert kept == {"data", "labelled", "predictions", "review"} | ({"models"} if "memory" not in root else set())
    assert not [name for name in found.files if name.startswith("checkpoints/")]  # it ended well
    again = pipeline.run("batch_digit_predictions")
    assert metadata(again, "batch_digit_predictions")["predicted_before"] is True
    if root.startswith("memory://"):
        inside = (tempfile.gettempdir(), str(PROJECT))
        assert [path for path in written if path.startswith(inside) and "dagster" not in path.lower()] == []


def test_predictions_of_a_folder_in_a_bucket(variables, instance, small_dataset):
    root = variables["STORAGE_ROOT"]
    environment = Environment.read(variables | {"PREDICTION_INPUT": f"{root}/input"})
    pipeline = Pipeline(environment, instance)
    assert pipeline.run().output_for_node("digit_classifier")
    assert pipeline.run("batch_digit_predictions").asset_materializations_for_node("batch_digit_predictions") == []
    folder = storage_path(f"{root}/input", environment.s3_endpoint_url)
    for number in range(3):
        write_bytes(folder / f"{number}.png", png(small_dataset.test.images[number]))
    write_bytes(folder / ".staging" / "a.png", b"half")
    result = pipeline.run("batch_digit_predictions")
    told = metadata(result, "batch_digit_predictions")
    assert (told["images"], told["errors"], told["files_left_out"]) == (3, 0, 1)
    by_name = {"input_paths": [f"{root}/input/1.png"]}
    result = pipeline.run("batch_digit_predictions", batch_digit_predictions=by_name)
    assert metadata(result, "batch_digit_predictions")["images"] == 1
    with pytest.raises(dg.Failure, match=r"input_paths that do not exist: .*nothing\.png"):
        pipeline.run("batch_digit_predictions", batch_digit_predictions={"input_paths": [f"{root}/nothing.png"]})


def test_what_lives_in_memory_refuses_runs_of_several_processes(raw_folder, instance):
    variables = {"STORAGE_ROOT": "memory://refused", **variables_of(raw_folder)}
    pipeline = Pipeline(Environment.read(variables), instance)
    for name in ("full_pipeline_job", "training_job", "inference_job"):
        job = pipeline.defs.resolve_job_def(name)
        with pytest.raises(dg.DagsterInvariantViolationError, match="memory:// holds values within one process only"):
            create: Any = job.executor_def.executor_creation_fn  # what the process of a run calls
            create(None)
    assert pipeline.run("raw_mnist_data").success


def test_models_of_before_are_not_lost_out_of_sight(monkeypatch, tmp_path):
    """The default place of models followed no STORAGE_ROOT in a bucket before."""
    before = tmp_path / "storage" / "models"
    (before / "a_version").mkdir(parents=True)
    (before / "a_version" / "manifest.json").write_text("{}")
    monkeypatch.setattr("mnist_pipeline.stores.addresses.PROJECT", tmp_path)
    with pytest.raises(EnvironmentInvalid, match=rf"MODEL_STORE={before} to keep them there, or copy them"):
        store_from_environment(Environment.read({"STORAGE_ROOT": "s3://bucket/x"}))
    assert store_from_environment(Environment.read({"STORAGE_ROOT": "memory://"})).address == "memory://models"
    kept = Environment.read({"STORAGE_ROOT": "s3://bucket/x", "MODEL_STORE": str(before)})
    assert store_from_environment(kept).address == str(before)


TRAIN = """
import os, sys
import dagster as dg
from mnist_pipeline.definitions import build_definitions
from mnist_pipeline.environment import Environment

job = build_definitions(Environment.read(os.environ)).resolve_job_def("full_pipeline_job")
result = job.execute_in_process(
    run_config={"ops": {"digit_classifier": {"config": %r}}}, asset_selection=[dg.AssetKey("digit_classifier")]
)
[made] = result.asset_materializations_for_node("digit_classifier")
print(made.metadata["resumed_after_epoch"].value, made.metadata["weights_sha256"].value, sep="\\n", file=sys.stderr)
"""


@pytest.mark.live
def test_a_killed_training_goes_on_in_a_process_that_shares_only_the_bucket(
    s3_bucket, s3_url, raw_folder, instance, tmp_path
):
    root = f"s3://{s3_bucket}/pipeline"
    variables = {"STORAGE_ROOT": root, "S3_ENDPOINT_URL": s3_url}
    raw = variables_of(raw_folder)
    Pipeline(Environment.read(variables | raw), instance).run("raw_mnist_data", "processed_mnist_data")
    settings = TINY | {"epochs": 12}

    def start(name: str) -> subprocess.Popen[str]:
        home = tmp_path / name  # a machine of its own: its home, its temporary files
        home.mkdir()
        kept = {key: value for key, value in os.environ.items() if key.startswith(("AWS_", "PATH", "LANG", "OMP_"))}
        own = kept | variables | {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(PROJECT)}
        command = [sys.executable, "-W", "ignore", "-c", TRAIN % settings]
        return subprocess.Popen(command, cwd=home, env=own, stderr=subprocess.PIPE, text=True)

    checkpoints = storage_path(f"{root}/checkpoints", s3_url)

    def epochs() -> int:
        for name in walk(checkpoints).files:
            assert name.endswith(FILE_NAME)
            return header_texts(read_bytes(checkpoints / name))["state"].count('"epoch"')
        return 0

    with start("first") as first:
        wait_until(lambda: epochs() >= 2 or first.poll() is not None, "two epochs", 120, 0.05)
        first.kill()
    assert 2 <= epochs() < 12
    resumed, weights = _ends(start("second"))
    assert int(resumed) >= 2
    assert walk(checkpoints).files == {}
    whole, same_weights = _ends(start("third"))
    assert int(whole) == 0
    assert weights == same_weights  # cut off or not


def _ends(process: subprocess.Popen[str]) -> list[str]:
    """The last two lines of a process that ends well."""
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said[-3000:]
    return said.splitlines()[-2:]
