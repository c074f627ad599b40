"""Settings are checked before a run begins, in every job, and a file may change their defaults."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pydantic import Field

from mnist_pipeline.definitions import build_definitions, load_assets
from mnist_pipeline.defs.jobs import require_complete
from mnist_pipeline.defs.run_config import ConfigInvalid, config_class, configure, read_pipeline_config
from mnist_pipeline.environment import Environment
from mnist_pipeline_tests.conftest import Pipeline, metadata
from mnist_pipeline_tests.presets import PRESETS
from mnist_pipeline_tests.task.examples import TINY

WRONG = {
    "processed_mnist_data": {"validation_fraction": 1.0},
    "digit_classifier": {"optimizer": "adamw", "momentum": 0.9},
    "model_evaluation": {"calibration_bins": 0},
    "production_digit_classifier": {"strategy": "force"},
    "backtest": {"newest": 0},
    "leaderboard": {"sweep": "../elsewhere"},
    "batch_digit_predictions": {"batch_size": 0},
    "digit_predictions": {"confidence_threshold": 2.0},
}
"""A value that each step with settings would refuse."""

OF_THEIR_OWN = {"backtest": "backtest_job", "leaderboard": "leaderboard_job"}
"""The jobs of steps that are not in the one of everything."""


def test_every_asset_with_settings_is_known():
    assets, _ = load_assets(Environment.read({}))
    assert {asset.key.to_user_string() for asset in assets if config_class(asset)} == set(WRONG)


@pytest.mark.parametrize("step", sorted(WRONG))
def test_a_run_by_hand_of_one_asset_is_checked_before_it_begins(pipeline, step):
    """`momentum` with `adamw` in a run of its own asset was tried three times before."""
    job = pipeline.defs.resolve_job_def(OF_THEIR_OWN.get(step, "full_pipeline_job"))
    with pytest.raises(ConfigInvalid, match=step):
        job.execute_in_process(
            run_config={"ops": {step: {"config": WRONG[step]}}},
            asset_selection=[dg.AssetKey(step)],
            instance=pipeline.instance,
        )
    assert pipeline.instance.get_runs_count() == 0


@pytest.mark.parametrize("job", ["training_job", "deployment_job", "inference_job", "full_pipeline_job"])
def test_every_job_is_checked_before_it_begins(pipeline, job):
    job = pipeline.defs.resolve_job_def(job)
    steps = {key.to_user_string() for key in job.asset_layer.executable_asset_keys} & set(WRONG)
    assert steps
    for step in steps:
        with pytest.raises(ConfigInvalid, match=step):
            job.execute_in_process(run_config={"ops": {step: {"config": WRONG[step]}}}, instance=pipeline.instance)
    assert pipeline.instance.get_runs_count() == 0


def config_file(folder: Path, **steps: Any) -> str:
    import yaml

    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"ops": {step: {"config": config} for step, config in steps.items()}}))
    return str(path)


@pytest.fixture
def configured(environment, instance, tmp_path) -> Pipeline:
    file = config_file(
        tmp_path, digit_classifier=TINY | {"epochs": 3}, processed_mnist_data={"validation_fraction": 0.3}
    )
    return Pipeline(environment.model_copy(update={"pipeline_config": file}), instance)


def test_a_file_changes_the_defaults_of_runs_without_configuration(configured, small_dataset):
    """As automation's are."""
    job = configured.defs.resolve_job_def("training_job")
    result = job.execute_in_process(instance=configured.instance)
    assert metadata(result, "digit_classifier")["epochs"] == 3
    assert metadata(result, "digit_classifier")["settings"]["batch_size"] == TINY["batch_size"]
    share = metadata(result, "processed_mnist_data")["validation_images"] / len(small_dataset.train.labels)
    assert share == pytest.approx(0.3)
    run_config = {"ops": {"digit_classifier": {"config": {"epochs": 1}}}}
    result = job.execute_in_process(run_config=run_config, instance=configured.instance)
    assert metadata(result, "digit_classifier")["epochs"] == 1
    assert metadata(result, "digit_classifier")["settings"]["batch_size"] == TINY["batch_size"]


def test_the_launchpad_shows_the_defaults_of_the_file(configured):
    fields = configured.defs.resolve_job_def("training_job").run_config_schema.config_type.fields
    config = fields["ops"].config_type.fields["digit_classifier"].config_type.fields["config"].config_type
    assert config.fields["epochs"].default_value == 3
    assert "Passes over the training images" in config.fields["epochs"].description


def code_versions(environment: Environment, **changes: Any) -> dict[str, str | None]:
    assets, _ = load_assets(environment.model_copy(update=changes))
    return {asset.key.to_user_string(): asset.specs_by_key[asset.key].code_version for asset in assets}


def test_changed_defaults_change_the_code_version_of_their_assets_only(environment, tmp_path):
    usual = code_versions(environment)
    seen = {}
    for epochs in (20, 21, 22):  # 20 is the default
        found = code_versions(environment, pipeline_config=config_file(tmp_path, digit_classifier={"epochs": epochs}))
        assert {name for name in usual if usual[name] != found[name]} == (
            {"digit_classifier"} if epochs > 20 else set()
        )
        seen[epochs] = found["digit_classifier"]
    assert len(set(seen.values())) == 3
    file = config_file(tmp_path, digit_classifier={"epochs": 21})
    assert code_versions(environment, pipeline_config=file)["digit_classifier"] == seen[21]


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_can_be_the_defaults(environment, preset):
    found = code_versions(environment, pipeline_config=str(preset))
    assert found["digit_classifier"] != code_versions(environment)["digit_classifier"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "ops: {digit_clasifier: {config: {}}}",
            "configures digit_clasifier; the steps with settings are backtest, batch_digit_predictions",
        ),
        ("ops: {digit_classifier: {config: {epoch: 3}}}", r"digit_classifier\.epoch: Extra inputs are not permitted"),
        ("ops: {digit_classifier: {config: {epochs: 0}}}", r"digit_classifier\.epochs: .* \(got 0; allowed: >= 1"),
        ("ops: {digit_classifier: {config: {epochs: many}}}", r"digit_classifier\.epochs: Input should be a valid int"),
        ("ops: {digit_classifier: {config: {momentum: 0.9}}}", "momentum has an effect only with optimizer='sgd'"),
        ("ops: {digit_classifier: {config: [1]}}", "a config is not a mapping"),
        ("ops: {digit_classifier: {epochs: 3}}", "is not a file of 'ops: <step>: config"),
        ("resources: {}", "is not a file of 'ops"),
        ("ops: {}\nresources: {}", "unknown names: resources"),
        ("- 1", "is not a file of 'ops"),
        ("", "is not a file of 'ops"),
        ("ops: [", "is not a file of 'ops"),
        ("ops: {1: {config: {}}}", "names that are no text"),
        ("ops: {digit_classifier: {config: {on: 1}}}", "names that are no text"),
        ("ops: {digit_classifier: {config: {epochs: 2024-13-45}}}", "is not a file of 'ops"),
        ("[" * 5000, "is not a file of 'ops"),
        ("\0", "is not a file of 'ops"),
    ],
)
def test_wrong_content_is_refused_when_the_code_location_loads(environment, tmp_path, content, message):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ConfigInvalid, match=message) as error:
        build_definitions(environment.model_copy(update={"pipeline_config": str(path)}))
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigInvalid, match=r"PIPELINE_CONFIG .*/typo\.yaml is not .*No such file"):
        read_pipeline_config(str(tmp_path / "typo.yaml"))


class NewConfig(dg.Config):
    amount: int = Field(1, ge=1)


@dg.asset(code_version="1")
def new_asset(config: NewConfig) -> int:
    return config.amount


def test_a_new_asset_with_settings_is_checked_without_being_registered():
    [asset] = configure([new_asset], {"new_asset": {"amount": 2}}, "a file")
    assert dg.materialize([asset]).output_for_node("new_asset") == 2
    with pytest.raises(ConfigInvalid, match=r"new_asset\.amount: .* \(got 0; allowed: >= 1\)"):
        dg.materialize([asset], run_config={"ops": {"new_asset": {"config": {"amount": 0}}}})


def test_an_asset_that_is_only_half_there_is_an_error_at_load():
    assets, _ = load_assets(Environment.read({}))
    require_complete(assets)
    with pytest.raises(
        dg.DagsterInvalidDefinitionError,
        match=r"new_asset has no automation_condition .* and no check .* and no job \(a place in defs/jobs\.py\)",
    ):
        require_complete([*assets, new_asset])
