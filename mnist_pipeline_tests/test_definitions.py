"""What the code location offers, and what loading it costs."""

import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.freshness import TimeWindowFreshnessPolicy
from pydantic import BaseModel

import mnist_pipeline
from mnist_pipeline.definitions import build_definitions, defs
from mnist_pipeline.defs.preloaded import DAGSTER, MACHINE_LEARNING
from mnist_pipeline.environment import Environment, EnvironmentInvalid
from mnist_pipeline.ml.data import content_digest
from mnist_pipeline.ml.settings import SplitSettings, TrainingSettings
from mnist_pipeline_tests.conftest import Pipeline
from mnist_pipeline_tests.presets import PRESETS, preset_config
from mnist_pipeline_tests.task.examples import variables_of

PACKAGE = Path(mnist_pipeline.__file__).parent
HEAVY = {"torch", "torchvision", "sklearn", "scipy", "matplotlib", "boto3", "mlxtend", "pyarrow"}

GRAPH = {
    "raw_mnist_data": ("data_processing", set()),
    "labelled_digits": ("data_processing", set()),
    "processed_mnist_data": ("data_processing", {"raw_mnist_data", "labelled_digits"}),
    "digit_classifier": ("model_pipeline", {"processed_mnist_data"}),
    "model_evaluation": ("model_pipeline", {"digit_classifier", "processed_mnist_data"}),
    "production_digit_classifier": ("model_pipeline", {"model_evaluation", "processed_mnist_data"}),
    "trial": ("experiments", {"processed_mnist_data"}),
    "leaderboard": ("experiments", {"trial"}),
    "backtest": ("experiments", {"processed_mnist_data"}),
    "prediction_input": ("inference", set()),
    "batch_digit_predictions": (
        "inference",
        {"production_digit_classifier", "processed_mnist_data", "prediction_input"},
    ),
    "digit_predictions": ("inference", {"production_digit_classifier", "processed_mnist_data"}),
}
JOBS = {
    "training_job": {"raw_mnist_data", "processed_mnist_data", "digit_classifier", "model_evaluation"},
    "deployment_job": {"production_digit_classifier"},
    "inference_job": {"batch_digit_predictions", "digit_predictions"},
    "full_pipeline_job": set(GRAPH) - {"labelled_digits", "prediction_input", "trial", "leaderboard", "backtest"},
    "trial_job": {"trial"},
    "leaderboard_job": {"leaderboard"},
    "backtest_job": {"backtest"},
    "candidate_job": {"digit_classifier", "model_evaluation", "production_digit_classifier"},
    "sweep_job": set(),
}
CHECKS = {
    "raw_mnist_data": {"complete", "class_sizes", "full_data_set"},
    "processed_mnist_data": {"class_balance", "nothing_lost", "split_proportions", "no_leakage"},
    "digit_classifier": {"stored_candidate_is_sound"},
    "model_evaluation": {"scores_agree"},
    "production_digit_classifier": {"candidate_accepted", "deployed_model_works"},
    "batch_digit_predictions": {"batch_predictions_are_sane", "no_drift"},
    "digit_predictions": {"digit_predictions_are_sane"},
    "trial": {"trial_is_stored"},
    "leaderboard": {"all_trials_ranked"},
    "backtest": {"all_versions_scored"},
}


def test_the_graph():
    nodes = defs.resolve_asset_graph().asset_nodes
    found = {
        node.key.to_user_string(): (node.group_name, {key.to_user_string() for key in node.parent_keys})
        for node in nodes
    }
    assert found == GRAPH
    assert all(node.description for node in nodes)
    assert all(node.code_version for node in nodes if node.is_materializable)


def test_the_jobs():
    found = {
        job.name: {key.to_user_string() for key in defs.resolve_job_def(job.name).asset_layer.executable_asset_keys}
        for job in defs.jobs or []
    }
    assert found == JOBS


def test_the_checks():
    found: dict[str, set[str]] = {}
    graph = defs.resolve_asset_graph()
    for key in graph.asset_check_keys:
        found.setdefault(key.asset_key.to_user_string(), set()).add(key.name)
    assert found == CHECKS
    blocking = {key.name for key in graph.asset_check_keys if graph.get_check_spec(key).blocking}
    assert blocking == {"deployed_model_works"}


def test_definitions_are_loadable_and_named():
    dg.Definitions.validate_loadable(defs)
    assert {sensor.name for sensor in defs.sensors or []} == {
        "automation",
        "watch_deployment",
        "sweeps",
        "watch_labelled_digits",
        "watch_prediction_input",
        "slack_alerts",
    }
    assert set(defs.resources or {}) == {
        "tensor_io_manager",
        "record_io_manager",
        "mlflow",
        "model_store",
        "raw_data",
        "labelled_digits_dir",
        "checkpoints",
        "predictions_dir",
        "review_dir",
        "prediction_input_dir",
    }


def fresh_python(code: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments], check=True, capture_output=True, text=True
    ).stdout


def test_loading_imports_nothing_heavy():
    code = "import json, sys, mnist_pipeline.definitions; print(json.dumps(sorted(sys.modules)))"
    assert not HEAVY & set(json.loads(fresh_python(code)))


LOOK_ONCE = """
import json, sys
import dagster as dg
from mnist_pipeline.definitions import build_definitions
from mnist_pipeline.environment import Environment

defs = build_definitions(Environment.read({"STORAGE_ROOT": sys.argv[1], "PREDICTION_INPUT": sys.argv[1]}))
with dg.DagsterInstance.ephemeral() as instance:
    for name in ("watch_labelled_digits", "watch_prediction_input", "sweeps", "slack_alerts"):
        sensor = defs.get_repository_def().get_sensor_def(name)
        with dg.build_sensor_context(instance, definitions=defs, resources=defs.resources) as context:
            sensor.evaluate_tick(context)
print(json.dumps(sorted(sys.modules)))
"""


def test_nor_does_looking_at_folders_and_alerts(tmp_path):
    (tmp_path / "a.png").write_bytes(b"image")
    assert not HEAVY & set(json.loads(fresh_python(LOOK_ONCE, str(tmp_path))))


def test_training_waits_for_no_library_that_it_does_not_use():
    modules = "from mnist_pipeline.ml import data, drift, plots, training"
    code = f"import json, sys; {modules}; print(json.dumps([*sys.modules]))"
    assert not {"sklearn", "scipy", "torchvision", "pyarrow"} & set(json.loads(fresh_python(code)))


def test_what_the_executors_import_ahead_can_be_imported():
    """Python's fork server passes over modules that it cannot find: nobody would notice."""
    ahead = [*DAGSTER, *MACHINE_LEARNING]
    code = f"import sys, {', '.join(ahead)}; print('torch' in sys.modules)"
    assert fresh_python(code).strip() == "False"  # it is left to the step that trains
    for job in ("full_pipeline_job", "training_job"):
        assert preloaded_modules(job) == ahead
    assert preloaded_modules("inference_job") == [*DAGSTER]


def preloaded_modules(job: str) -> list[str]:
    """What the fork server of the job's executor imports ahead."""
    config = defs.resolve_job_def(job).executor_def.apply_config_mapping({"config": {}}).value
    assert config
    return config["config"]["start_method"]["forkserver"]["preload_modules"]


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_configurations_of_every_training_job(preset):
    config = yaml.safe_load(preset.read_text())
    for job in ("full_pipeline_job", "training_job"):
        assert dg.validate_run_config(defs.resolve_job_def(job), config)
    for step, settings in (("digit_classifier", TrainingSettings), ("processed_mnist_data", SplitSettings)):
        chosen = settings(**preset_config(preset.stem).get(step, {}))
        default = settings().model_dump()
        assert all(default[name] != value for name, value in chosen.model_dump(exclude_unset=True).items())


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MODEL_STORE": "gcs"}, "MODEL_STORE: 'gcs' is neither a folder"),
        ({"MODEL_STORE": "s3"}, "S3_MODEL_BUCKET"),
        ({"MODEL_STORE": "s3://b/x", "MODEL_DIR": "/x"}, "MODEL_DIR would be ignored: unset it"),
        ({"MODEL_STORE": "s3://b/x", "S3_MODEL_BUCKET": "b"}, "S3_MODEL_BUCKET would be ignored: unset it"),
        ({"MODEL_STORE": "s3://b/x", "S3_MODEL_PREFIX": "y"}, "S3_MODEL_PREFIX would be ignored: unset it"),
        ({"MODEL_STORE": "s3", "S3_MODEL_BUCKET": "u:p@b"}, "must not hold a user, a password"),
        ({"S3_ENDPOINT_URL": "127.0.0.1:9"}, "S3_ENDPOINT_URL: a URL begins with http:// or https:// and names a host"),
        ({"S3_ENDPOINT_URL": "http://[::1"}, "S3_ENDPOINT_URL: a URL begins with http"),
        ({"S3_ENDPOINT_URL": "u:p@host:9"}, "S3_ENDPOINT_URL: an address must not hold a user"),
        ({"STORAGE_ROOT": "s3://b/../x"}, "STORAGE_ROOT: 's3://b/../x' has an empty part, '.' or '..'"),
        ({"STORAGE_ROOT": "s3://my bucket/x"}, "STORAGE_ROOT: .* has characters that no name of a bucket has"),
        ({"STORAGE_ROOT": "gs://b:99/x"}, "STORAGE_ROOT: .* has characters that no name of a bucket has"),
        ({"MODEL_STORE": "s3:/b/x"}, "MODEL_STORE: 's3:/b/x' has one slash where an address has two"),
        ({"MODEL_STORE": "~nobody-here/x"}, "MODEL_STORE: '~nobody-here/x': "),
        ({"FOLDER_LINKS": "some"}, "FOLDER_LINKS: Input should be 'inside', 'anywhere' or 'never'"),
        ({"DATASET_SOURCE": "web"}, "DATASET_SOURCE: Input should be 'auto', 'directory', 'download' or 'sample'"),
        ({"RETRAIN_CRON": "weekly-ish"}, "RETRAIN_CRON.*'weekly-ish' is not a cron schedule"),
        ({"MODEL_DIR": "s3://bucket/models"}, "MODEL_DIR: 's3://bucket/models' is not a local folder"),
        (
            {"STORAGE_ROOT": "ftp://host/x"},
            "STORAGE_ROOT: 'ftp://host/x' is neither a folder nor one of s3://, gs://",
        ),
        ({"PREDICT_CRON": "nightly"}, "PREDICT_CRON.*'nightly' is not a cron schedule"),
        ({"AUTOMATION": "maybe"}, "AUTOMATION: Input should be 'on' or 'off'"),
        ({"AUTOMATION_SECONDS": "1"}, "AUTOMATION_SECONDS: Input should be greater than or equal to 5"),
        ({"MODEL_RETRAIN": "daily"}, "MODEL_RETRAIN: Input should be 'on_cron' or 'eager'"),
        (
            {"SLACK_ALERTS": "failures,noise"},
            "SLACK_ALERTS: noise is not one of failures, promotions, approvals, refusals, drift",
        ),
        ({"PREDICTION_INPUT": "s3://"}, "PREDICTION_INPUT: 's3://' names no bucket"),
        ({"CRON_TIMEZONE": "Mars/Olympus"}, "CRON_TIMEZONE.*not an IANA time zone"),
        ({"CRON_TIMEZONE": "Europe"}, "CRON_TIMEZONE.*not an IANA time zone"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(variables, message):
    with pytest.raises(EnvironmentInvalid, match=message):
        Environment.read(variables)


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({"STORAGE_ROOT": "/data"}, "/data/models"),
        ({"STORAGE_ROOT": "gs://bucket/x/"}, "gs://bucket/x/models"),
        ({"STORAGE_ROOT": "memory://"}, "memory://models"),
        ({"MODEL_STORE": "az://container/models"}, "az://container/models"),
        ({"MODEL_STORE": "/models"}, "/models"),
        ({"MODEL_STORE": "~/models"}, str(Path.home() / "models")),
        # the names of before
        ({"STORAGE_ROOT": "/data", "MODEL_STORE": "local"}, "/data/models"),
        ({"STORAGE_ROOT": "s3://bucket", "MODEL_STORE": "local"}, str(PACKAGE.parent / "storage" / "models")),
        ({"MODEL_STORE": "local", "MODEL_DIR": "/models"}, "/models"),
        ({"MODEL_DIR": "/models"}, "/models"),
        ({"MODEL_STORE": "s3", "S3_MODEL_BUCKET": "bucket"}, "s3://bucket/models"),
        ({"MODEL_STORE": "s3", "S3_MODEL_BUCKET": "bucket", "S3_MODEL_PREFIX": "x/y"}, "s3://bucket/x/y"),
    ],
)
def test_a_store_is_named_by_one_address_and_the_names_of_before_still_work(variables, address):
    assert Environment.read(variables).model_address() == address


@pytest.mark.parametrize(
    "name",
    [
        *("STORAGE_ROOT", "DATA_DIR", "PREDICTIONS_DIR", "LABELLED_DIR", "CHECKPOINT_DIR", "MODEL_STORE"),
        *("PREDICTION_INPUT", "S3_ENDPOINT_URL", "SLACK_API_URL", "DAGSTER_WEBSERVER_URL"),
    ],
)
@pytest.mark.parametrize("address", ["https://user:secret@host/x", "s3://user:secret@bucket", "az://c/x?sig=secret"])
def test_a_password_in_an_address_is_refused_and_not_repeated(name, address):
    with pytest.raises(EnvironmentInvalid, match=f"{name}: an address must not hold a user, a password") as refused:
        Environment.read({name: address})
    assert "secret" not in str(refused.value)


def test_the_environment_reaches_the_resources(tmp_path):
    environment = Environment.read(
        {
            "STORAGE_ROOT": str(tmp_path),
            "LABELLED_DIR": "s3://bucket/labelled",
            "MODEL_STORE": "s3",
            "S3_MODEL_BUCKET": "models",
            "S3_MODEL_PREFIX": "ours",
            "S3_ENDPOINT_URL": "http://127.0.0.1:1",
            **variables_of("/data"),
            "PREDICTION_INPUT": str(tmp_path / "in"),
            "FOLDER_LINKS": "never",
            "CHECKPOINT_DIR": "gs://bucket/checkpoints",
        }
    )
    found = build_definitions(environment).resources or {}
    store = found["model_store"]
    assert (store.bucket, store.prefix, store.endpoint_url) == ("models", "ours", "http://127.0.0.1:1")
    assert found["labelled_digits_dir"].location == "s3://bucket/labelled"
    assert found["raw_data"].directory == "/data"
    assert found["prediction_input_dir"].location == str(tmp_path / "in")
    assert found["record_io_manager"].base_path == str(tmp_path / "data")
    assert found["checkpoints"].directory == "gs://bucket/checkpoints"
    for name in ("labelled_digits_dir", "prediction_input_dir"):
        assert (found[name].links, found[name].endpoint_url) == ("never", "http://127.0.0.1:1")


@pytest.mark.parametrize(("automation", "status"), [("on", "RUNNING"), ("off", "STOPPED")])
def test_automation_runs_unless_it_is_off(automation, status):
    sensors = build_definitions(Environment.read({"AUTOMATION": automation, "AUTOMATION_SECONDS": "7"})).sensors or []
    found = {sensor.name: sensor.default_status.value for sensor in sensors}
    assert found == {
        "automation": status,
        "watch_deployment": status,
        "sweeps": status,
        "watch_labelled_digits": status,
        "watch_prediction_input": status,
        "slack_alerts": "RUNNING",
    }
    assert {sensor.minimum_interval_seconds for sensor in sensors} == {7}


def test_freshness_is_watched_where_it_is_promised():
    policies = {
        node.key.to_user_string(): node.freshness_policy
        for node in defs.resolve_asset_graph().asset_nodes
        if getattr(node, "freshness_policy", None)
    }
    assert set(policies) == {"production_digit_classifier", "batch_digit_predictions"}
    nightly = policies["batch_digit_predictions"]
    assert isinstance(nightly, TimeWindowFreshnessPolicy)
    assert nightly.warn_window
    assert datetime.timedelta(days=1) < nightly.warn_window.to_timedelta() < nightly.fail_window.to_timedelta()


def test_a_folder_of_inputs_is_made_absolute():
    environment = Environment.read({"PREDICTION_INPUT": "~/in"})
    location = (build_definitions(environment).resources or {})["prediction_input_dir"].location
    assert location == str(Path.home() / "in")


def test_every_variable_is_explained():
    example = (PACKAGE.parent / ".env.example").read_text()
    assert [name for name in Environment.model_fields if f"# {name.upper()}=" not in example] == []


def test_no_secret_in_what_can_be_dumped():
    environment = Environment.read({"SLACK_BOT_TOKEN": "xoxb-secret", "SLACK_CHANNEL": "#ml"})
    assert "xoxb-secret" not in repr(environment) + environment.model_dump_json() + repr(build_definitions(environment))


def test_the_code_location_has_the_name_of_the_project_in_a_clone_of_any_name(tmp_path):
    from dagster_dg_core.context import DgContext

    shutil.copy(PACKAGE.parent / "pyproject.toml", tmp_path)
    assert DgContext.for_project_environment(tmp_path, {}).code_location_name == "mnist_pipeline"
    workspace = yaml.safe_load((PACKAGE.parent / "workspace.yaml").read_text())
    assert workspace["load_from"][0]["python_module"]["location_name"] == "mnist_pipeline"


@pytest.fixture(scope="module")
def built(raw_folder, tmp_path_factory):
    """The whole graph, materialized once."""
    folder = str(tmp_path_factory.mktemp("storage"))
    variables = {"STORAGE_ROOT": folder, **variables_of(raw_folder)}
    with dg.DagsterInstance.ephemeral() as instance:
        pipeline = Pipeline(Environment.read(variables), instance)
        yield pipeline, pipeline.run()


MADE = sorted(JOBS["full_pipeline_job"])


@pytest.mark.parametrize("asset", MADE)
def test_every_value_is_loaded_without_an_annotation(built, asset):
    """As in a notebook."""
    pipeline, result = built
    value = pipeline.defs.load_asset_value(asset, instance=pipeline.instance)
    made = result.output_for_node(asset)
    assert type(value) is type(made)
    if isinstance(value, BaseModel):
        assert value == made
    else:
        assert content_digest(value.train, value.test) == content_digest(made.train, made.test)
        assert value.spec == made.spec
