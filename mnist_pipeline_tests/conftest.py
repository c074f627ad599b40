"""Real images, tiny real trainings, real servers on loopback."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest
from moto.server import ThreadedMotoServer

from mnist_pipeline.definitions import build_definitions
from mnist_pipeline.environment import Environment
from mnist_pipeline.files import cloud
from mnist_pipeline.ml.data import split
from mnist_pipeline.ml.records import Splits
from mnist_pipeline.ml.settings import SplitSettings, TrainingSettings
from mnist_pipeline.ml.training import TrainingResult, train
from mnist_pipeline.task.dataset import Dataset, no_images
from mnist_pipeline.task.spec import TaskSpec
from mnist_pipeline_tests import clouds
from mnist_pipeline_tests.task import examples
from mnist_pipeline_tests.task.examples import TINY, variables_of

BUCKET = "mnist-tests"


@pytest.fixture(scope="session")
def spec(small_dataset: Dataset) -> TaskSpec:
    """Classes and shape of the images that the tests use."""
    return small_dataset.spec


@pytest.fixture(scope="session")
def small_dataset() -> Dataset:
    """800 training and 200 test images."""
    return examples.small_dataset()


@pytest.fixture(scope="session")
def splits(small_dataset: Dataset) -> Splits:
    return split(small_dataset, no_images(small_dataset.spec), SplitSettings())


@pytest.fixture(scope="session")
def trained(splits: Splits) -> TrainingResult:
    return train(TrainingSettings(**TINY), splits)


@pytest.fixture(scope="session")
def raw_folder(small_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small data set as files."""
    folder = tmp_path_factory.mktemp("raw")
    examples.write_files(folder, small_dataset)
    return folder


@pytest.fixture
def environment(tmp_path: Path, raw_folder: Path) -> Environment:
    return Environment.read({"STORAGE_ROOT": str(tmp_path / "storage"), **variables_of(raw_folder)})


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


class Pipeline:
    """The real graph of one deployment, run in this process."""

    def __init__(self, environment: Environment, instance: dg.DagsterInstance) -> None:
        self.environment = environment
        self.instance = instance
        self.defs = build_definitions(environment)
        repository = self.defs.get_repository_def()
        self.assets = list(repository.assets_defs_by_key.values())
        self.checks = list(repository.asset_checks_defs_by_key.values())

    def run(self, *assets: str, raise_on_error: bool = True, **config: dict[str, Any]) -> dg.ExecuteInProcessResult:
        """Materialize `assets` (all when none is named) with a configuration for each step."""
        job = self.defs.resolve_job_def("full_pipeline_job")
        defaults: dict[str, dict[str, Any]] = {
            "digit_classifier": TINY,
            # The service is asked about a candidate in tests of that, and by the live ones: it takes seconds.
            "production_digit_classifier": {
                "accuracy_threshold": 0.3,
                "max_slice_regression": 1.0,
                "serve_check": "off",
            },
        }
        config = defaults | config
        ran = set(assets) or {key.to_user_string() for key in job.asset_layer.executable_asset_keys}
        return job.execute_in_process(
            run_config={"ops": {step: {"config": values} for step, values in config.items() if step in ran}},
            asset_selection=[dg.AssetKey(name) for name in assets] or None,
            instance=self.instance,
            raise_on_error=raise_on_error,
        )

    @property
    def store(self) -> Any:
        return (self.defs.resources or {})["model_store"]


@pytest.fixture
def pipeline(environment: Environment, instance: dg.DagsterInstance) -> Pipeline:
    return Pipeline(environment, instance)


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """A real S3 server over HTTP."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def fresh_connections() -> None:
    """Nothing left of the connections and credentials of another test."""
    for connection in (cloud._connect, cloud.options, cloud._boto3_credentials):
        connection.cache_clear()


@pytest.fixture(scope="session")
def azurite_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Azure's emulator, installed by npm into pytest's cache; a skip with a reason where that cannot be."""
    program = clouds.install_azurite(request.config.cache.mkdir("azurite"))
    if isinstance(program, str):
        pytest.skip(program)
    with clouds.azurite(program, tmp_path_factory.mktemp("azurite")) as url:
        yield url


@pytest.fixture
def azure_container(azurite_url: str, fresh_connections: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty container on the emulator, and the variables by which it is found."""
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", azurite_url)
    name = f"test-{uuid.uuid4().hex}"
    clouds.make_container(azurite_url, name)
    return name


@pytest.fixture
def google_bucket(fresh_connections: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket on a server that speaks Google's protocol, and the variables by which it is found."""
    name = f"test-{uuid.uuid4().hex}"
    with clouds.google(name) as url:
        account = {"gcs_base_url": url, "disable_oauth": True, "client_email": "", "private_key": ""}
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account | {"private_key_id": ""}))
        yield name


@pytest.fixture
def s3_bucket(s3_url: str, fresh_connections: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket on the server, and credentials for it."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = boto3.resource("s3", endpoint_url=s3_url).create_bucket(Bucket=BUCKET)
    yield BUCKET
    bucket.objects.all().delete()
    bucket.delete()


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    """The metadata values that a run recorded for an asset."""
    [materialization] = result.asset_materializations_for_node(asset)
    values = materialization.metadata.items()
    return {name: value if isinstance(value, dg.TableMetadataValue) else value.value for name, value in values}


def check_results(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {evaluation.check_name: evaluation.passed for evaluation in result.get_asset_check_evaluations()}
