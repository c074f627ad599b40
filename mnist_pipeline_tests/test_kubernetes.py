"""The jobs that Dagster's client for Kubernetes makes, caught and run.

No cluster was at hand: a server that speaks its protocol takes the jobs.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.events import EngineEventData

from mnist_pipeline.defs.batch_parts import PART_COMPUTE
from mnist_pipeline.defs.engines.kubernetes_jobs import OUT_OF_MEMORY, PodSteps
from mnist_pipeline.defs.engines.traces import KUBERNETES_JOB
from mnist_pipeline.defs.training import TRAINING_COMPUTE
from mnist_pipeline_tests.held import HELD_FROM, HOLD_DATA, HOLD_TRAINING
from mnist_pipeline_tests.kubernetes_api import DEPLOY, LAUNCHER, LOCATION, SHARED, VALUES, Cluster, Pod, kubernetes
from mnist_pipeline_tests.live import PROJECT, SETTINGS, Deployment
from mnist_pipeline_tests.postgres import PASSWORD, Postgres, postgres
from mnist_pipeline_tests.task.examples import variables_of

KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "the key of a bucket",
    "AWS_DEFAULT_REGION": "us-east-1",
}
NAMESPACE, IMAGE = "pipeline", "registry.example.com/mnist_pipeline:1"
SNAKE = {
    "containerConfig": "container_config",
    "podSpecConfig": "pod_spec_config",
    "jobSpecConfig": "job_spec_config",
    "podTemplateSpecMetadata": "pod_template_spec_metadata",
}


@pytest.fixture
def database() -> Iterator[Postgres]:
    with postgres() as found:
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
def deployment(tmp_path, raw_folder, cluster, database, s3_url, s3_bucket, monkeypatch) -> Iterator[Deployment]:
    """Code server and daemon as the chart would start them with the values, their runs and steps in pods."""
    for name, value in {**database.variables, "DAGSTER_PG_PASSWORD": PASSWORD}.items():
        monkeypatch.setenv(name, value)
    executor = tmp_path / "executor.yaml"
    engine = yaml.safe_load((DEPLOY / "executor.yaml").read_text())
    executor.write_text(yaml.safe_dump(engine | {"compute": {"digit_classifier": {"gpus": 1, "memory_mib": 3000}}}))
    folder, root = tmp_path / "deployment", f"s3://{s3_bucket}/production"
    own = {"S3_ENDPOINT_URL": s3_url, "STORAGE_ROOT": root, "MODEL_STORE": f"{root}/models", "PREDICTION_PARTS": "2"}
    own |= {
        "EXECUTOR_CONFIG": str(executor),
        "PIPELINE_CONFIG": str(folder / "config.yaml"),
        **variables_of(raw_folder),
    }
    own |= {HOLD_TRAINING: str(tmp_path / "hold"), HOLD_DATA: str(tmp_path / "hold_data")}
    own |= {"AUTOMATION": "off", "PYTHONWARNINGS": "ignore"}
    given = {entry["name"]: entry["value"] for entry in LOCATION["env"] if "value" in entry} | own
    secret = [entry for entry in LOCATION["env"] if "value" not in entry]
    assert given["EXECUTOR"] == "k8s"
    given |= {name: value for name, value in database.variables.items() if not name.endswith("PASSWORD")}
    context = {
        "env": [*secret, *({"name": name, "value": value} for name, value in given.items())],
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
        folder, "mnist_pipeline_tests.held", SETTINGS, instance, DAGSTER_PG_PASSWORD=PASSWORD, **given, **image
    )
    found.start()
    yield found
    found.stop()


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
    threads = [entry["value"] for entry in training.container["env"] if entry["name"] == "OMP_NUM_THREADS"]
    assert threads[-1] == str(TRAINING_COMPUTE.cores)  # of two the last one holds
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


@pytest.mark.live
def test_a_node_is_lost_with_a_cheap_step_and_then_with_a_pod_of_a_step(deployment, cluster):
    """The run goes on in another pod, where the job of the step is there already."""
    api, _ = cluster
    hold, hold_data = (Path(deployment.variables[name]) for name in (HOLD_TRAINING, HOLD_DATA))
    hold.touch()
    hold_data.touch()
    deployment.submit("training_job")

    def started(step: str) -> int:
        """How often a step has begun."""
        runs = deployment.instance.get_runs()
        entries = deployment.instance.all_logs(runs[0].run_id, of_type=dg.DagsterEventType.STEP_START) if runs else []
        return sum(entry.step_key == step for entry in entries)

    deployment.wait_for(lambda: started("raw_mnist_data") == 1, "the raw data to be read", 240)
    api.of(None)[-1].kill()
    deployment.wait_for(lambda: started("raw_mnist_data") == 2, "that to begin again", 240)
    hold_data.unlink()
    deployment.wait_for(lambda: deployment.epochs() == HELD_FROM, "some epochs", 240)
    [training] = api.of("digit_classifier")
    api.of(None)[-1].kill()
    training.kill()
    deployment.wait_for(lambda: deployment.epochs() > HELD_FROM, "training to go on", 240)
    assert len(api.of("digit_classifier")) == 2
    hold.unlink()
    deployment.wait_for(lambda: not deployment.running(), "the run to end", 240)
    assert [found.status for found in deployment.instance.get_runs()] == [dg.DagsterRunStatus.SUCCESS], api.log()
    [built] = deployment.built("digit_classifier")
    assert built["resumed_after_epoch"] == HELD_FROM
    assert len(api.of(None)) == 3
    assert api.refused == []


class Jobs:
    """As much of the client as looking for jobs takes; each pod is there for one more look."""

    def __init__(self) -> None:
        self.active = {"dagster-step-1"}
        self.deleted: list[str] = []
        self.looks = 0

    def get_job_status(self, namespace: str, job_name: str) -> Any:
        assert namespace == NAMESPACE
        return SimpleNamespace(active=int(job_name in self.active))

    def delete_job(self, job_name: str, namespace: str) -> bool:
        self.deleted.append(job_name)
        return True

    def get_pod_names_in_job(self, job_name: str, namespace: str) -> list[str]:
        self.looks += 1
        return ["a pod"] if self.looks < 2 else []


def test_the_job_that_outlived_its_run_is_deleted_before_its_step_begins_again():
    job, jobs = dg.JobDefinition(graph_def=dg.GraphDefinition("empty")), Jobs()
    native: Any = SimpleNamespace(
        name="native",
        _api_client=jobs,
        _get_step_key=lambda _: "some_step",
        _get_container_context=lambda _: SimpleNamespace(namespace=NAMESPACE),
        launch_step=lambda _: iter(()),
    )
    with dg.DagsterInstance.ephemeral() as instance:
        runs: list[dg.DagsterRun] = []
        for number in (1, 2, 3):  # the second has ended, too, and its pod with it
            before = runs[-1].run_id if runs else None
            run = instance.create_run_for_job(job, parent_run_id=before, root_run_id=runs[0].run_id if runs else None)
            where = EngineEventData({KUBERNETES_JOB: dg.MetadataValue.text(f"dagster-step-{number}")})
            instance.report_engine_event("launched", run, where, step_key="some_step")
            runs.append(run)
        for run in (runs[0], runs[2]):
            context: Any = SimpleNamespace(instance=instance, dagster_run=run)
            assert list(PodSteps(native).launch_step(context)) == []
    assert jobs.deleted == ["dagster-step-1"]
    assert jobs.looks == 2  # it was waited for
