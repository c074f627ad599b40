"""A server that speaks as much of Kubernetes' API as jobs take: it holds them against its schemas, and runs them.

A pod is a process of this machine, with the variables that the job gives to its container and no others.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import yaml

from mnist_pipeline_tests.live import PROJECT

DEPLOY = PROJECT / "deploy" / "kubernetes"
VALUES: dict[str, Any] = yaml.safe_load((DEPLOY / "values.yaml").read_text())
[LOCATION] = VALUES["dagster-user-deployments"]["deployments"]
LAUNCHER = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
SHARED = LAUNCHER["runK8sConfig"]
"""What the pods of runs and steps have in common."""

VERSIONS = ("1.29", "1.37")
"""The schemas that manifests and jobs must fit, of an old and of a new cluster."""

OF_EVERY_POD = {"PATH": f"{Path(sys.executable).parent}:{os.defpath}", "PYTHONPATH": str(PROJECT), "HOME": "/tmp"}
"""The variables of the image."""

JOBS = re.compile(r"/apis/batch/v1/namespaces/(?P<namespace>[^/]+)/jobs(/(?P<name>[^/]+)(/status)?)?")
PODS = re.compile(r"/api/v1/namespaces/[^/]+/(pods|events)")


def validate(manifest: dict[str, Any]) -> None:
    """Raises ValidationError, of kubernetes_validate, where the manifest does not fit the published schemas."""
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


class Pod:
    """A job, and the process of its only pod."""

    def __init__(self, job: dict[str, Any], secrets: dict[str, dict[str, str]], folder: Path) -> None:
        self.job, self.reason = job, "Error"
        [self.container] = job["spec"]["template"]["spec"]["containers"]
        variables = dict(OF_EVERY_POD)
        for source in self.container.get("envFrom", []):
            variables |= secrets[source["secretRef"]["name"]]
        for entry in self.container["env"]:
            if reference := entry.get("valueFrom", {}).get("secretKeyRef"):
                variables[entry["name"]] = secrets[reference["name"]][reference["key"]]
            else:
                variables[entry["name"]] = entry["value"]
        with (folder / f"{self.name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                self.container["args"], env=variables, cwd="/", stdout=log, stderr=log, start_new_session=True
            )

    @property
    def name(self) -> str:
        return str(self.job["metadata"]["name"])

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.job["spec"]["template"]["metadata"]["labels"])

    @property
    def step(self) -> str | None:
        """The step that it is of; None of one that is of a whole run."""
        return self.labels.get("dagster/op")

    def kill(self, reason: str = "Error") -> None:
        """Its node is gone, or another reason that Kubernetes knows."""
        self.reason = reason
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def pod_as_json(self) -> dict[str, Any]:
        code = self.process.poll()
        state = {"running": {}} if code is None else {"terminated": {"exitCode": abs(code), "reason": self.reason}}
        container = {"name": "dagster", "image": "", "imageID": "", "ready": code is None, "restartCount": 0}
        return {"metadata": {"name": f"{self.name}-1"}, "status": {"containerStatuses": [container | {"state": state}]}}

    def as_json(self) -> dict[str, Any]:
        ended = self.process.poll()
        state = "active" if ended is None else "failed" if ended else "succeeded"
        return self.job | {"status": {state: 1}}


class Cluster:
    """The jobs, in the order in which they came, and what was wrong with those that were refused."""

    def __init__(self, folder: Path, secrets: dict[str, dict[str, str]]) -> None:
        self.folder, self.secrets = folder, secrets
        self.pods: dict[str, Pod] = {}
        self.refused: list[str] = []

    def of(self, step: str | None) -> list[Pod]:
        """The pods of a step, or those of runs."""
        return [pod for pod in self.pods.values() if pod.step == step]

    def log(self) -> str:
        return "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))


@contextmanager
def kubernetes(folder: Path, secrets: dict[str, dict[str, str]]) -> Iterator[tuple[Cluster, Path]]:
    """Serve on loopback; yields the cluster, and the file by which clients find it."""
    cluster = Cluster(folder, secrets)

    class Api(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _find(self) -> Pod | None:
            found = JOBS.fullmatch(urlsplit(self.path).path)
            return cluster.pods.get(found["name"] or "") if found else None

        def do_POST(self) -> None:
            job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if job["metadata"]["name"] in cluster.pods:
                return self._answer(409, {"kind": "Status", "reason": "AlreadyExists", "code": 409})
            try:
                validate(job)
                assert JOBS.fullmatch(urlsplit(self.path).path)
                pod = Pod(job, secrets, folder)
            except (kubernetes_validate.ValidationError, AssertionError, KeyError) as error:
                cluster.refused.append(f"{job['metadata']['name']}: {error!r}")
                return self._answer(422, {"kind": "Status", "message": str(error), "code": 422})
            cluster.pods[pod.name] = pod
            return self._answer(201, job)

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            if PODS.fullmatch(address.path):
                [label] = parse_qs(address.query).get("labelSelector", [""])
                found = cluster.pods.get(label.removeprefix("job-name="))
                return self._answer(200, {"items": [found.pod_as_json()] if found else []})
            if pod := self._find():
                return self._answer(200, pod.as_json())
            return self._answer(404, {"kind": "Status", "reason": "NotFound", "code": 404})

        def do_DELETE(self) -> None:
            if pod := self._find():
                pod.process.terminate()
                return self._answer(200, {"kind": "Status", "status": "Success"})
            return self._answer(404, {"kind": "Status", "reason": "NotFound", "code": 404})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    Thread(target=server.serve_forever, daemon=True).start()
    file = folder / "kubeconfig"
    clusters = [{"name": "tests", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}]
    contexts = [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}]
    users = [{"name": "tests", "user": {}}]
    file.write_text(
        yaml.safe_dump({"clusters": clusters, "contexts": contexts, "users": users, "current-context": "tests"})
    )
    try:
        yield cluster, file
    finally:
        server.shutdown()
        server.server_close()
        for pod in cluster.pods.values():
            if pod.process.poll() is None:
                pod.kill()
