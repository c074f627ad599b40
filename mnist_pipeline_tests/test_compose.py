"""deploy/compose.yaml as far as it goes without the images: brought up, used, and its code server killed."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml

from mnist_pipeline_tests.containers import IMAGE, THIS_MACHINE, VARIABLES, Containers, containers
from mnist_pipeline_tests.live import PROJECT, wait_until
from mnist_pipeline_tests.postgres import programs
from mnist_pipeline_tests.task.examples import TINY, embedded_images, png, small_dataset, variables_of, write_files

pytestmark = pytest.mark.live

DEPLOY = PROJECT / "deploy"
ENTRYPOINT = str(DEPLOY / "entrypoint.sh")
ONE_SHOT = {"store-volume", "bucket"}


def compose_command() -> list[str] | None:
    """Docker's plugin, or the program that was before it."""
    plugin = ["docker", "compose"]
    if shutil.which("docker") and not subprocess.run([*plugin, "version"], capture_output=True, check=False).returncode:
        return plugin
    return ["docker-compose"] if shutil.which("docker-compose") else None


def test_the_files_are_valid():
    """The service's limits and the hardening are in each, whatever is merged."""
    command = compose_command()
    if command is None:
        pytest.skip("neither `docker compose` nor docker-compose is there (Debian: docker-compose)")
    for more in ([], ["-f", str(DEPLOY / "compose.docker.yaml")]):
        done = subprocess.run(
            [*command, "-f", str(DEPLOY / "compose.yaml"), *more, "config"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        services = yaml.safe_load(done.stdout)["services"]
        assert len(services) >= 8
        for name, service in services.items():
            assert service["mem_limit"], name
            assert service["read_only"], name
            assert service["cpus"], name
            assert ("docker" in service.get("networks", {})) == (len(more) > 0 and name in ("docker", "code", "daemon"))
            if name != "docker":  # the proxy before Docker's socket, which is root's
                assert service["user"] not in ("root", "0"), name
                assert service["cap_drop"] == ["ALL"], name
            assert name in ONE_SHOT | {"docker"} or service["healthcheck"], name
            told = {key: value for key, value in service.get("environment", {}).items() if not key.endswith("_FILE")}
            assert not {key for key in told if re.search("PASSWORD|SECRET|TOKEN", key)}, name


class Compose:
    """The project, with the files of this machine in place of its images."""

    def __init__(self, command: list[str], daemon: Containers, folder: Path) -> None:
        self.client, self.folder = daemon.client, folder
        shutil.copytree(DEPLOY, folder / "deploy")
        subprocess.run([folder / "deploy/make_secrets.sh"], check=True)
        raw = folder / "raw"
        raw.mkdir()
        write_files(raw, small_dataset(80, 100))
        (folder / "override.yaml").write_text(yaml.safe_dump({"services": overrides(raw)}))
        self.ports = {name: _free_port() for name in ("UI_PORT", "SERVICE_PORT")}
        self._command = [*command, "-f", str(folder / "deploy/compose.yaml"), "-f", str(folder / "override.yaml")]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DAGSTER_")}
        own = {"AUTOMATION": "off", "DOCKER_HOST": daemon.host, "COMPOSE_PROJECT_NAME": "mnist"}
        self._variables = kept | own | {name: str(port) for name, port in self.ports.items()}
        for service in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values():
            self.client.images.get(IMAGE).tag(service["image"])

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._command, *arguments],
            env=self._variables,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:] + self.log()
        return done.stdout

    def container(self, service: str) -> Any:
        [found] = self.client.containers.list(all=True, filters={"label": f"com.docker.compose.service={service}"})
        return found

    def is_healthy(self, service: str) -> bool:
        return self.container(service).attrs["State"].get("Health", {}).get("Status") == "healthy"

    def ask(self, port: str, path: str, body: bytes | None = None, **headers: str) -> Any:
        """Request what is published on the host; an answer that something is not ready counts."""
        url = f"http://127.0.0.1:{self.ports[port]}{path}"
        request = urllib.request.Request(url, body, {"Content-Type": "application/octet-stream"} | headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            return json.load(error)

    def runs(self) -> list[dict[str, Any]]:
        """The runs and what their log says at the end, newest first, as the UI has them."""
        events = "eventConnection(limit: 1000) { events { ... on MessageEvent { message } } }"
        query = f"{{ runsOrError {{ ... on Runs {{ results {{ status {events} }} }} }} }}"
        body = json.dumps({"query": query}).encode()
        answer = self.ask("UI_PORT", "/graphql", body, **{"Content-Type": "application/json"})
        return answer["data"]["runsOrError"]["results"]

    def log(self) -> str:
        return "\n".join(
            f"{container.name}:\n{container.logs(tail=200).decode()}"
            for container in self.client.containers.list(all=True)
        )


GRPC = ["dagster", "api", "grpc", "-h", "0.0.0.0", "-p", "4000", "-m", "mnist_pipeline.definitions"]
SERVE = ["python", "-m", "mnist_pipeline.serve", "--host", "0.0.0.0"]


def overrides(raw: Path) -> dict[str, dict[str, Any]]:
    """What each service takes in place of its image: the files of this machine, and the command of the image."""
    pipeline: dict[str, Any] = {
        "entrypoint": ["/entrypoint"],
        "working_dir": str(PROJECT),
        "environment": VARIABLES
        | variables_of(raw)
        | {"DAGSTER_HOME": "/dagster", "DAGSTER_POSTGRES_DB": "postgres", "OMP_NUM_THREADS": "1"},
        "volumes": [
            *THIS_MACHINE,
            f"{raw}:{raw}:ro",
            f"{DEPLOY}/entrypoint.sh:/entrypoint:ro",
            f"{DEPLOY}/dagster.postgres.yaml:/dagster/dagster.yaml:ro",
        ],
        "tmpfs": [str(folder) for folder in [PROJECT / "storage"] if folder.exists()],  # nothing of this clone's runs
    }
    listening = "import socket; socket.create_connection(('127.0.0.1', 9000))"
    return dict.fromkeys(("bucket", "daemon", "webserver", "store-volume"), pipeline) | {
        "code": pipeline | {"command": GRPC},
        "service": pipeline | {"command": SERVE},
        "store": {
            "entrypoint": ["moto_server", "-H", "0.0.0.0", "-p", "9000"],
            "command": [],
            "environment": VARIABLES,
            "volumes": THIS_MACHINE,
            "healthcheck": {"test": ["CMD", "python", "-c", listening]},
        },
        "postgres": {
            "entrypoint": ["/bin/sh", "-euc", DATABASE],
            "environment": {"PATH": f"{programs()}:{os.defpath}", "PGDATA": "/var/lib/postgresql/data"},
            "volumes": THIS_MACHINE,
        },
    }


DATABASE = """
if [ ! -s "$$PGDATA/PG_VERSION" ]; then
    initdb --auth=scram-sha-256 --username=dagster --pwfile=/run/secrets/postgres_password
    echo "host all all all scram-sha-256" >> "$$PGDATA/pg_hba.conf"
fi
exec postgres -c listen_addresses='*'
"""
"""What the image of Postgres does."""


@pytest.fixture
def compose(tmp_path) -> Iterator[Compose]:
    command = compose_command()
    if command is None or programs() is None:
        pytest.skip("it takes `docker compose` or docker-compose, and Postgres (Debian: docker-compose, postgresql)")
    with containers() as daemon:
        if isinstance(daemon, str):
            pytest.skip(daemon)
        try:
            daemon.client.networks.create("a-trial").remove()
        except docker.errors.DockerException as error:
            pytest.skip(f"networks of containers cannot be made here: {error}")
        project = Compose(command, daemon, tmp_path)
        yield project
        project("down", "--volumes")


def test_it_is_brought_up_trains_serves_and_survives_its_code_server(compose, spec):
    compose("up", "-d", "--no-build")
    lasting = ("postgres", "store", "code", "daemon", "webserver", "service")
    try:
        wait_until(lambda: all(compose.is_healthy(name) for name in lasting), "all to be healthy", 300, 1)
    except AssertionError:
        raise AssertionError(compose.log()) from None
    for name in ONE_SHOT:
        assert compose.container(name).wait()["StatusCode"] == 0
    for name in lasting:
        [processes] = [compose.container(name).top()]
        assert {row[0] for row in processes["Processes"]} <= {"nobody", "postgres", "65534"}

    # In the midst of the run the code server dies, with all its processes; the daemon, elsewhere, notices.
    config = {"digit_classifier": TINY | {"epochs": 40}, "production_digit_classifier": {"accuracy_threshold": 0.3}}
    steps = {"ops": {step: {"config": values} for step, values in config.items()}}
    launch = ["dagster", "job", "launch", "-w", "deploy/workspace.yaml", "-j", "full_pipeline_job"]
    compose("exec", "-T", "code", "/entrypoint", *launch, "--config-json", json.dumps(steps))
    wait_until(lambda: "epoch 2/" in compose.container("code").logs().decode(), "some epochs", 300, 1)
    os.kill(compose.container("code").attrs["State"]["Pid"], signal.SIGKILL)  # Docker would take it for a wish
    wait_until(lambda: compose.ask("SERVICE_PORT", "/readyz").get("ready"), "a model to be served", 600, 1)
    wait_until(
        lambda: [run["status"] for run in compose.runs()] == ["SUCCESS", "FAILURE"], "the second run to end", 300, 1
    )
    [*_, failed] = compose.runs()
    assert "the code server on code does not know it any more" in json.dumps(failed)
    image = png(embedded_images().test.images[0])
    with pytest.raises(urllib.error.HTTPError, match="401"):
        compose.ask("SERVICE_PORT", "/predict", image)
    token = (compose.folder / "deploy/secrets/serve_token").read_text()
    answer = compose.ask("SERVICE_PORT", "/predict", image, Authorization=f"Bearer {token}")
    assert answer["predictions"][0]["class"] in spec.class_names
    # No secret stands in what Docker tells of a container.
    secrets = [path.read_text() for path in (compose.folder / "deploy/secrets").iterdir()]
    assert len(secrets) == 3
    told = json.dumps([container.attrs for container in compose.client.containers.list(all=True)]) + compose.log()
    assert [secret for secret in secrets if secret in told] == []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
