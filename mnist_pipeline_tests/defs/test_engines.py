"""The choice of where steps run, what they declare, and the files of a deployment that go with it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.job_base import InMemoryJob

from mnist_pipeline.definitions import build_definitions, defs
from mnist_pipeline.defs.engines import choosing
from mnist_pipeline.defs.engines.choosing import passed_on
from mnist_pipeline.defs.engines.compute import Compute
from mnist_pipeline.defs.engines.several_hosts import local_places, require_shared
from mnist_pipeline.defs.training import TRAINING_COMPUTE
from mnist_pipeline.environment import PROJECT, Environment, EnvironmentInvalid

DEPLOY = PROJECT / "deploy"
ENGINES = {"docker", "dagster_docker", "psycopg2", "ray", "dagster_ray", "kubernetes", "dagster_k8s"}
JOBS = ("full_pipeline_job", "training_job", "inference_job", "trial_job")


@pytest.mark.parametrize("engine", ["in_process", "multiprocess", "docker", "ray", "k8s"])
def test_one_variable_chooses_for_all_jobs_and_for_automation(engine):
    found = build_definitions(Environment.read({"EXECUTOR": engine}))
    assert isinstance(found.executor, dg.ExecutorDefinition)
    assert found.executor.name == engine
    assert {found.resolve_job_def(job).executor_def.name for job in JOBS} == {engine}


def test_the_default_needs_no_engine_but_this_machine():
    assert Environment.read({}).executor == "multiprocess"


def test_an_unknown_engine_is_refused():
    with pytest.raises(EnvironmentInvalid, match=r"EXECUTOR: Input should be .*'docker', 'ray' or 'k8s'"):
        Environment.read({"EXECUTOR": "slurm"})


@pytest.mark.parametrize(("engine", "absent"), [("docker", "dagster_docker"), ("ray", "ray"), ("k8s", "dagster_k8s")])
def test_an_engine_that_is_not_installed_is_refused_by_what_to_install(monkeypatch, engine, absent):
    monkeypatch.setattr(choosing, "find_spec", lambda name: None if name == absent else importlib.util.find_spec(name))
    with pytest.raises(
        EnvironmentInvalid, match=rf"EXECUTOR={engine} needs .* pip install 'mnist_pipeline\[{engine}\]"
    ):
        build_definitions(Environment.read({"EXECUTOR": engine}))
    build_definitions(Environment.read({}))  # nobody else looks for it


def test_the_default_imports_no_engine():
    code = f"import sys, mnist_pipeline.definitions; print({ENGINES!r} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def configured(executor: dg.ExecutorDefinition) -> dict[str, Any]:
    config = executor.apply_config_mapping({"config": {}}).value
    assert config
    return config["config"]


def written(folder: Path, text: str) -> str:
    file = folder / "executor.yaml"
    file.write_text(text)
    return str(file)


def test_the_fields_of_dagsters_executor_reach_it(tmp_path):
    file = written(tmp_path, "max_concurrent: 3")
    found = build_definitions(Environment.read({"EXECUTOR_CONFIG": file}))
    assert isinstance(found.executor, dg.ExecutorDefinition)
    for executor in (found.executor, found.resolve_job_def("full_pipeline_job").executor_def):
        config = configured(executor)
        assert config["max_concurrent"] == 3
        assert "mnist_pipeline.definitions" in config["start_method"]["forkserver"]["preload_modules"]


@pytest.mark.parametrize(
    ("engine", "text", "problem"),
    [
        ("docker", "imaeg: x", 'Received unexpected config entry "imaeg"'),
        ("multiprocess", "image: x", 'Received unexpected config entry "image"'),
        ("docker", "container_kwargs: {mem_limit: 1g}", "mem_limit would be ignored, as each step declares that"),
        ("multiprocess", "max_concurrent: -1", "max_concurrent must be 0 or more"),
        ("docker", "max_concurrent: '2'", "max_concurrent"),
        ("multiprocess", "- image", "must have the form .*fields of Dagster's executor"),
        ("multiprocess", "a: [", "cannot be read: "),
        ("in_process", None, "cannot be read: "),
        ("ray", "ray: {num_cpus: 2}", "ray: num_cpus would be ignored, as each step declares that"),
        ("ray", "ray: {adress: x}", 'Received unexpected config entry "adress"'),
        ("ray", "ray: 8265", "ray"),
        (
            "ray",
            "ray: {address: 'head:8265'}",
            "ray: address must be that of the cluster's dashboard, http://HOST:8265",
        ),
        ("ray", "max_concurrent: yes", "max_concurrent must be a number"),
        ("ray", "ray: {headers: {a: null}}", "Null map member"),
        ("docker", "compute: false", "compute: it names steps, and of each `cores`"),
        ("k8s", "max_concurrent: 0", "max_concurrent must be 1 or more"),
        ("k8s", "job_imag: x", 'Received unexpected config entry "job_imag"'),
        ("multiprocess", "compute: {trial: {cores: 2}}", 'Received unexpected config entry "compute"'),
        ("ray", "compute: {trail: {cores: 2}}", "compute: trail is not one of .*: digit_classifier, trial"),
        ("ray", "compute: {trial: {cores: 0}}", "trial.cores: Input should be greater than or equal to 1"),
        ("docker", "compute: {trial: {gpus: -1}}", "trial.gpus: Input should be greater than or equal to 0"),
        ("k8s", "compute: {trial: {memory: 1}}", "trial.memory: Extra inputs are not permitted"),
        ("k8s", "compute: {trial: {cores: '2'}}", "trial.cores: Input should be a valid integer"),
        ("k8s", "compute: [trial]", "compute: it names steps, .*; Input should be a valid dictionary"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_file(tmp_path, engine, text, problem):
    file = written(tmp_path, text) if text else str(tmp_path / "absent.yaml")
    with pytest.raises(EnvironmentInvalid, match=f"EXECUTOR_CONFIG {file}.*{problem}"):
        build_definitions(Environment.read({"EXECUTOR": engine, "EXECUTOR_CONFIG": file}))


def test_every_variable_but_secrets_reaches_a_step_elsewhere():
    left_out = {name.upper() for name in Environment.model_fields} - set(passed_on())
    assert left_out == {"SERVE_TOKEN", "SLACK_BOT_TOKEN", "SMTP_URL", "EXECUTOR", "EXECUTOR_CONFIG"}


def test_what_trains_declares_what_it_needs():
    declared = {
        node.name: compute
        for node in defs.resolve_job_def("full_pipeline_job").graph.node_defs
        if (compute := Compute.of(node.tags))
    }
    assert declared == {"digit_classifier": TRAINING_COMPUTE}
    [trial] = defs.resolve_job_def("trial_job").graph.node_defs
    assert Compute.of(trial.tags) == TRAINING_COMPUTE


def test_a_declaration_is_read_back_or_refused():
    compute = Compute(cores=2, memory_mib=512, gpus=1)
    assert Compute.of(compute.tags() | {"another": "tag"}) == compute
    assert Compute.of({"another": "tag"}) is None
    for wrong in ({"mnist_pipeline/cores": "2"}, compute.tags() | {"mnist_pipeline/gpus": "one"}):
        with pytest.raises(ValueError, match="are no `Compute`"):
            Compute.of(wrong)
    for nothing in (Compute(0, 512), Compute(1, 0), Compute(1, 1, -1)):
        with pytest.raises(ValueError, match="at least one core and some memory"):
            Compute.of(nothing.tags())


def test_a_declaration_is_said_in_the_words_of_kubernetes():
    tags = Compute(cores=2, memory_mib=512, gpus=1).tags()
    container = json.loads(tags["dagster-k8s/config"])["container_config"]
    amounts = {"cpu": "2", "memory": "512Mi", "nvidia.com/gpu": "1"}
    assert container == {
        "resources": {"requests": amounts, "limits": amounts},
        "env": [{"name": "OMP_NUM_THREADS", "value": "2"}],
    }
    assert "nvidia" not in Compute(cores=2, memory_mib=512).tags()["dagster-k8s/config"]


def test_places_on_one_machine_are_named_where_several_must_find_them(tmp_path):
    local = Environment.read({"STORAGE_ROOT": str(tmp_path), "PREDICTION_INPUT": "s3://a/b"})
    found = local_places(local)
    assert {name.partition(" ")[0] for name in found} == {
        *("DATA_DIR", "PREDICTIONS_DIR", "LABELLED_DIR", "REVIEW_DIR", "CHECKPOINT_DIR", "MODEL_STORE")
    }
    shared = {"STORAGE_ROOT": "s3://a/b", "MODEL_STORE": "s3://a/b/models"}
    assert local_places(Environment.read(shared)) == []
    [place] = local_places(Environment.read(shared | {"PREDICTION_INPUT": str(tmp_path)}))
    assert place == f"PREDICTION_INPUT ({tmp_path})"
    with dg.DagsterInstance.local_temp() as instance, pytest.raises(dg.DagsterInvariantViolationError) as refused:
        require_shared(local, instance, "two hosts")
    message = str(refused.value)
    assert message.startswith("two hosts, and these are missing: ")
    assert "Set STORAGE_ROOT to a bucket" in message
    assert f"the history: it is SQLite in {instance.root_directory}. Use Postgres" in message


def test_pods_need_runs_that_are_pods(tmp_path):
    found = build_definitions(Environment.read({"EXECUTOR": "k8s", "STORAGE_ROOT": str(tmp_path)}))
    job = found.resolve_job_def("full_pipeline_job")
    create = job.executor_def.executor_creation_fn
    assert create
    with dg.DagsterInstance.local_temp() as instance:
        context = dg.InitExecutorContext(InMemoryJob(job), job.executor_def, configured(job.executor_def), instance)
        with pytest.raises(dg.DagsterInvariantViolationError, match="EXECUTOR=k8s takes runs that are pods themselves"):
            create(context)


def test_the_instance_on_postgres_differs_in_its_storage_only():
    laptop, production = (
        yaml.safe_load(file.read_text()) for file in (PROJECT / "dagster.yaml", DEPLOY / "dagster.postgres.yaml")
    )
    assert production.pop("storage")["postgres"]["postgres_db"]["scheme"] == "postgresql+psycopg2"
    assert production == laptop


def test_containers_of_steps_fit_the_compose_file():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    steps = yaml.safe_load((DEPLOY / "docker.yaml").read_text())
    code, container = compose["services"]["code"], steps["container_kwargs"]
    assert steps["image"] == code["image"]
    assert steps["networks"] == [compose["networks"]["default"]["name"]]
    names = {f"{volume['name']}": key for key, volume in compose["volumes"].items()}
    mounted = [f"{names[name]}:{path}" for name, path in (volume.split(":") for volume in container["volumes"])]
    assert sorted(mounted) == sorted(code["volumes"])
    for hardening in ("user", "read_only", "cap_drop", "security_opt"):
        assert container[hardening] == code[hardening]
    given = {name.removesuffix("_FILE") for name in code["environment"]}
    assert set(steps["env_vars"]) <= given
    environment = Environment.read({"EXECUTOR": "docker", "EXECUTOR_CONFIG": str(DEPLOY / "docker.yaml")})
    assert set(given) - set(steps["env_vars"]) <= {*passed_on(), "EXECUTOR"} | {"SLACK_BOT_TOKEN", "SMTP_URL"}
    assert build_definitions(environment).executor  # Dagster takes all fields
