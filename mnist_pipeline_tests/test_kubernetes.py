"""The jobs that Dagster's client for Kubernetes makes, caught and run; and the manifests beside them.

No cluster was at hand: a server that speaks its protocol takes the jobs.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import boto3
import dagster as dg
import jsonschema
import kubernetes_validate
import pytest
import yaml
from fastapi.routing import APIRoute
from importlib_resources import files
from moto.server import ThreadedMotoServer
from referencing import Registry
from referencing.jsonschema import DRAFT7

from mnist_pipeline.definitions import build_definitions
from mnist_pipeline.defs.batch_parts import PART_COMPUTE
from mnist_pipeline.defs.engines.kubernetes_jobs import OUT_OF_MEMORY
from mnist_pipeline.defs.training import TRAINING_COMPUTE
from mnist_pipeline.environment import Environment
from mnist_pipeline.serve.operations import operations_routes
from mnist_pipeline.serve.settings import ServeSettings
from mnist_pipeline_tests.held import HELD_FROM, HOLD_TRAINING
from mnist_pipeline_tests.kubernetes_api import Cluster, Pod, kubernetes, validate
from mnist_pipeline_tests.live import PROJECT, SETTINGS, Deployment
from mnist_pipeline_tests.postgres import PASSWORD, Postgres, postgres
from mnist_pipeline_tests.task.examples import variables_of

DEPLOY = PROJECT / "deploy" / "kubernetes"
VALUES: dict[str, Any] = yaml.safe_load((DEPLOY / "values.yaml").read_text())
[LOCATION] = VALUES["dagster-user-deployments"]["deployments"]
LAUNCHER = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
SHARED = LAUNCHER["runK8sConfig"]
SERVICE: list[dict[str, Any]] = list(yaml.safe_load_all((DEPLOY / "service.yaml").read_text()))
CHART = "DAGSTER_CHART"
"""The variable that names the folder of Dagster's chart, unpacked (helm pull dagster/dagster --untar)."""

REGION = "eu-west-1"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "the key of a bucket", "AWS_DEFAULT_REGION": REGION}
NAMESPACE, BUCKET, IMAGE = "pipeline", "pods", "registry.example.com/mnist_pipeline:1"
SNAKE = {
    "containerConfig": "container_config",
    "podSpecConfig": "pod_spec_config",
    "jobSpecConfig": "job_spec_config",
    "podTemplateSpecMetadata": "pod_template_spec_metadata",
}


@pytest.fixture
def database() -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # the server is another user's
        with postgres(Path(folder)) as found:
            if isinstance(found, str):
                pytest.skip(found)
            yield found


@pytest.fixture
def cluster(tmp_path, database) -> Iterator[tuple[Cluster, Path]]:
    """With the secrets that the README has people make."""
    secrets = {"bucket": KEYS, VALUES["global"]["postgresqlSecretName"]: {"postgresql-password": PASSWORD}}
    folder = tmp_path / "pods"
    folder.mkdir()
    with kubernetes(folder, secrets) as found:
        yield found


@pytest.fixture
def deployment(tmp_path, raw_folder, cluster, database, monkeypatch) -> Iterator[Deployment]:
    """Code server and daemon as the chart would start them with the values, their runs and steps in pods."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in {**KEYS, **database.variables, "DAGSTER_PG_PASSWORD": PASSWORD}.items():
        monkeypatch.setenv(name, value)
    boto3.resource("s3", endpoint_url=url).create_bucket(
        Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION}
    )
    executor = tmp_path / "executor.yaml"
    engine = yaml.safe_load((DEPLOY / "executor.yaml").read_text())
    executor.write_text(yaml.safe_dump(engine | {"compute": {"digit_classifier": {"gpus": 1, "memory_mib": 3000}}}))
    folder, root = tmp_path / "deployment", f"s3://{BUCKET}/production"
    own = {"S3_ENDPOINT_URL": url, "STORAGE_ROOT": root, "MODEL_STORE": f"{root}/models", "PREDICTION_PARTS": "2"}
    own |= {
        "EXECUTOR_CONFIG": str(executor),
        "PIPELINE_CONFIG": str(folder / "config.yaml"),
        **variables_of(raw_folder),
    }
    own |= {HOLD_TRAINING: str(tmp_path / "hold"), "AUTOMATION": "off", "PYTHONWARNINGS": "ignore"}
    given = {entry["name"]: entry["value"] for entry in LOCATION["env"]} | own
    assert given["EXECUTOR"] == "k8s"
    where = {name: value for name, value in database.variables.items() if not name.endswith("PASSWORD")}
    context = {
        "env": [{"name": name, "value": value} for name, value in {**given, **where}.items()],
        "env_secrets": [secret["name"] for secret in LOCATION["envSecrets"]],
        "image_pull_policy": LOCATION["image"]["pullPolicy"],
        "namespace": NAMESPACE,
        **{field: LOCATION[name] for field, name in {"resources": "resources", "volumes": "volumes"}.items()},
        "volume_mounts": LOCATION["volumeMounts"],
    }
    image = {"DAGSTER_CURRENT_IMAGE": IMAGE, "DAGSTER_CLI_API_GRPC_CONTAINER_CONTEXT": json.dumps({"k8s": context})}
    instance = tmp_path / "dagster.yaml"
    instance.write_text(instance_settings(folder / "dagster_home", cluster[1]))
    found = Deployment(
        folder, "mnist_pipeline_tests.held", SETTINGS, instance, DAGSTER_PG_PASSWORD=PASSWORD, **given, **where, **image
    )
    found.start()
    yield found
    found.stop()
    server.stop()


def instance_settings(home: Path, kubeconfig: Path) -> str:
    """What the chart makes of the values: a dagster.yaml on Postgres with a launcher of pods."""
    settings = yaml.safe_load((PROJECT / "deploy" / "dagster.postgres.yaml").read_text())
    settings["storage"]["postgres"]["postgres_db"]["password"] = {"env": "DAGSTER_PG_PASSWORD"}
    launcher = {
        "load_incluster_config": False,
        "kubeconfig_file": str(kubeconfig),
        "job_namespace": NAMESPACE,
        "image_pull_policy": LAUNCHER["imagePullPolicy"],
        "service_account_name": "dagster",
        "dagster_home": str(home),
        "instance_config_map": "dagster-instance",
        "postgres_password_secret": VALUES["global"]["postgresqlSecretName"],
        "run_k8s_config": {SNAKE[name]: config for name, config in SHARED.items()},
    }
    settings["run_launcher"] = {"module": "dagster_k8s", "class": "K8sRunLauncher", "config": launcher}
    monitoring = VALUES["dagsterDaemon"]["runMonitoring"]
    settings["run_monitoring"]["max_resume_run_attempts"] = monitoring["maxResumeRunAttempts"]
    return yaml.safe_dump(settings)


def resources(pod: Pod) -> dict[str, Any]:
    return dict(pod.container["resources"])


def test_manifests_fit_the_schemas_of_the_api():
    kinds = [manifest["kind"] for manifest in SERVICE]
    assert kinds == [
        *("ServiceAccount", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy")
    ]
    for manifest in SERVICE:
        validate(manifest)
    wrong = json.loads(json.dumps(SERVICE[1]).replace("readinessProbe", "readynessProbe"))
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        validate(wrong)


def test_the_service_is_looked_for_where_it_answers_and_has_no_rights():
    account, deployment, service, scaler, budget, policy = SERVICE
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    routes = operations_routes(ServeSettings(), cast(Any, None), cast(Any, None)).routes
    paths = {route.path for route in routes if isinstance(route, APIRoute)}
    probed = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {name: probe["path"] for name, probe in probed.items()} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    assert {probe["path"] for probe in probed.values()} <= paths
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    assert budget["spec"]["selector"]["matchLabels"] == policy["spec"]["podSelector"]["matchLabels"] == labels
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]  # each `apply` would set them back
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert not pod["automountServiceAccountToken"]
    for shared in (SHARED, VALUES["dagsterDaemon"], VALUES["dagsterWebserver"], LOCATION):
        of_pod, of_container = (
            (shared["podSpecConfig"]["securityContext"], shared["containerConfig"]["securityContext"])
            if "podSpecConfig" in shared
            else (shared["podSecurityContext"], shared["securityContext"])
        )
        assert (of_pod, of_container) == (pod["securityContext"], container["securityContext"])
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]


def test_both_images_find_what_they_are_told_of():
    [service] = SERVICE[1]["spec"]["template"]["spec"]["containers"]
    of_service = {entry["name"]: entry["value"] for entry in service["env"]}
    of_pipeline = {entry["name"]: entry["value"] for entry in LOCATION["env"]}
    assert of_service["STORAGE_ROOT"] == of_pipeline["STORAGE_ROOT"]
    assert [source["secretRef"] for source in service["envFrom"]] == LOCATION["envSecrets"]
    assert {name.lower() for name in of_pipeline} <= {*Environment.model_fields}
    file = of_pipeline["EXECUTOR_CONFIG"].removeprefix("/srv/")
    image = (PROJECT / "Containerfile.pipeline").read_text()
    assert f"COPY {file} {Path(file).parent}/" in image
    assert "WORKDIR /srv" in image
    assert f"!{file}" in (PROJECT / ".dockerignore").read_text().splitlines()


def test_the_examples_of_the_executor_are_accepted(tmp_path):
    text = (DEPLOY / "executor.yaml").read_text()
    examples = re.sub("^# (?=compute|per_step|  )", "", text, flags=re.MULTILINE)
    file = tmp_path / "executor.yaml"
    file.write_text(examples)
    assert {*yaml.safe_load(examples)} == {"max_concurrent", "compute", "per_step_k8s_config"}
    found = {"EXECUTOR": "k8s", "EXECUTOR_CONFIG": str(file), "STORAGE_ROOT": str(tmp_path)}
    assert build_definitions(Environment.read(found)).executor


def test_values_fit_the_schemas_of_the_chart():
    """Of the chart and of the one within it, with the definitions of Kubernetes that the tests have anyway."""
    if not (folder := os.environ.get(CHART)):
        pytest.skip(f"{CHART} names no folder of Dagster's chart")
    chart = Path(folder)
    inner = chart / "charts" / "dagster-user-deployments"
    values = merged(yaml.safe_load((chart / "values.yaml").read_text()), VALUES)
    inner_values = merged(yaml.safe_load((inner / "values.yaml").read_text()), values["dagster-user-deployments"])
    schemas = files("kubernetes_validate").joinpath("kubernetes-json-schema", "v1.37.0-local", "_definitions.json")
    kinds = {"definitions": json.loads(schemas.read_text().replace("#/$defs/", "#/definitions/"))["$defs"]}
    registry: Any = Registry(retrieve=lambda _: DRAFT7.create_resource(kinds))  # type: ignore[call-arg]
    for place, found in ((chart, values), (inner, inner_values | {"global": values["global"]})):
        schema = json.loads((place / "values.schema.json").read_text())
        jsonschema.Draft7Validator(schema, registry=registry).validate(found)


def merged(values: Any, over: Any) -> Any:
    """As Helm merges values: mappings by their keys, all else replaced."""
    if not (isinstance(values, dict) and isinstance(over, dict)):
        return over
    return values | {name: merged(values.get(name), value) for name, value in over.items()}


@pytest.mark.live
def test_every_step_that_declares_what_it_needs_is_a_pod_with_that(deployment, cluster):
    api, _ = cluster
    deployment.submit("full_pipeline_job")
    deployment.wait_for(lambda: deployment.instance.get_runs() and not deployment.running(), "the run", 400)
    assert api.refused == []
    [run] = deployment.instance.get_runs()
    assert run.status == dg.DagsterRunStatus.SUCCESS, api.log()
    [of_run], [training] = api.of(None), api.of("digit_classifier")
    parts = [pod for number in range(2) for pod in api.of(f"batch_digit_predictions.predict_part_{number}")]
    assert {pod.name for pod in (of_run, training, *parts)} == set(api.pods)
    assert len(parts) == 2
    assert resources(of_run) == LOCATION["resources"]
    amounts = {"cpu": str(TRAINING_COMPUTE.cores), "memory": "3000Mi", "nvidia.com/gpu": "1"}
    assert resources(training) == {"requests": amounts, "limits": amounts}
    amounts = {"cpu": str(PART_COMPUTE.cores), "memory": f"{PART_COMPUTE.memory_mib}Mi"}
    assert all(resources(part) == {"requests": amounts, "limits": amounts} for part in parts)
    threads = {"name": "OMP_NUM_THREADS", "value": str(TRAINING_COMPUTE.cores)}
    assert threads in training.container["env"]
    for pod in api.pods.values():
        spec = pod.job["spec"]["template"]["spec"]
        assert (
            pod.job["spec"]["ttlSecondsAfterFinished"]
            == LAUNCHER["runK8sConfig"]["jobSpecConfig"]["ttlSecondsAfterFinished"]
        )
        assert pod.job["spec"]["backoffLimit"] == 0  # Dagster tries again
        assert spec["securityContext"] == LAUNCHER["runK8sConfig"]["podSpecConfig"]["securityContext"]
        assert pod.container["securityContext"] == LAUNCHER["runK8sConfig"]["containerConfig"]["securityContext"]
        assert pod.container["image"] == IMAGE
        mounts = {mount["mountPath"] for mount in pod.container["volumeMounts"]}
        assert {mount["mountPath"] for mount in LOCATION["volumeMounts"]} <= mounts
        assert all(secret not in json.dumps(pod.job) for secret in (PASSWORD, KEYS["AWS_SECRET_ACCESS_KEY"]))


@pytest.mark.live
def test_a_pod_of_a_training_is_lost_and_then_the_one_of_its_run(deployment, cluster):
    api, _ = cluster
    hold = Path(deployment.variables[HOLD_TRAINING])
    hold.touch()
    deployment.submit("training_job")
    deployment.wait_for(lambda: deployment.epochs() == HELD_FROM, "some epochs", 240)
    [first] = api.of("digit_classifier")
    first.kill(OUT_OF_MEMORY)
    deployment.wait_for(lambda: deployment.epochs() > HELD_FROM, "training to go on", 240)
    [begun] = deployment.running()
    [again] = deployment.instance.all_logs(begun.run_id, of_type=dg.DagsterEventType.STEP_UP_FOR_RETRY)
    told = f"{again.message} {again.dagster_event}"
    assert "it took more than 3000 MiB of memory and was killed: declare more" in told
    [_, second] = api.of("digit_classifier")
    [run] = api.of(None)
    run.kill()
    deployment.wait_for(lambda: len(api.of(None)) == 2, "the run in another pod", 240)
    assert second.process.poll() is None  # nobody has begun the training again
    hold.unlink()
    [built] = deployment.wait_for(lambda: deployment.built("digit_classifier"), "the training", 240)
    assert built["resumed_after_epoch"] == HELD_FROM
    deployment.wait_for(lambda: not deployment.running(), "the run to end", 240)
    assert [found.status for found in deployment.instance.get_runs()] == [dg.DagsterRunStatus.SUCCESS], api.log()
    assert len(api.of("digit_classifier")) == 2
    assert api.refused == []
