"""A server that speaks as much of the API of Ray's jobs as a client takes; it runs each on this machine."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from mnist_pipeline_tests.live import PROJECT

SILENT = 0
"""The status of a server that answers nothing."""

JOB = re.compile(r"/api/jobs/([^/]+)")
HOST = {"node_ip": "127.0.0.1", "state": "ALIVE", "resources_total": {"CPU": 2.0, "memory": 2.0**32}}


class Jobs:
    """The jobs that came, their processes, and what the server does next."""

    def __init__(self) -> None:
        self.address = ""
        self.submitted: list[dict[str, Any]] = []
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.stopped: list[str] = []
        self.hosts = [dict(HOST)]
        self.status = 200
        """Another one is the answer to all questions about jobs."""
        self.refused = 0
        """So many jobs are refused first."""
        self.message = ""
        self.answer = ""
        """A state that all jobs are said to be in."""

    def add(self, job: dict[str, Any]) -> None:
        self.submitted.append(job)
        variables = {name: os.path.expandvars(value) for name, value in job["runtime_env"]["env_vars"].items()}
        of_host = os.environ | {"PYTHONPATH": str(PROJECT)}
        process = subprocess.Popen(job["entrypoint"], shell=True, env=of_host | variables, start_new_session=True)
        self.processes[job["submission_id"]] = process

    def details(self, name: str) -> dict[str, Any]:
        ended = self.processes[name].poll()
        status = self.answer or ("RUNNING" if ended is None else "FAILED" if ended else "SUCCEEDED")
        [job] = [job for job in self.submitted if job["submission_id"] == name]
        found = {"type": "SUBMISSION", "submission_id": name, "status": status, "entrypoint": job["entrypoint"]}
        return found | {"metadata": job["metadata"], "message": self.message, "error_type": "THE_KIND"}


@contextmanager
def ray_jobs() -> Iterator[Jobs]:
    """Serve on loopback."""
    jobs = Jobs()

    class Api(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, content: Any, status: int = 200) -> None:
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            if self.path == "/api/jobs/" and jobs.refused:
                jobs.refused -= 1
                return self._answer("the server is busy", 503)
            if self.path == "/api/jobs/":
                jobs.add(content)
                return self._answer({"job_id": content["submission_id"], "submission_id": content["submission_id"]})
            name = self.path.split("/")[3]
            jobs.stopped.append(name)
            jobs.processes[name].terminate()
            return self._answer({"stopped": True})

        def do_GET(self) -> None:
            if self.path.startswith("/api/version"):
                return self._answer({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})
            if self.path.startswith("/api/v0/nodes"):
                nodes = {"total": 1, "num_after_truncation": 1, "num_filtered": 1, "result": jobs.hosts}
                return self._answer({"result": True, "msg": "", "data": {"result": nodes}})
            return self._answer_about_jobs()

        def _answer_about_jobs(self) -> None:
            if jobs.status == SILENT:
                self.connection.recv(1)  # returns when the client closes
                return None
            if jobs.status != 200:
                return self._answer("the server is busy", jobs.status)
            if found := JOB.fullmatch(self.path):
                if found[1] not in jobs.processes:
                    return self._answer(f"Job {found[1]} does not exist", 404)
                return self._answer(jobs.details(found[1]))
            return self._answer([jobs.details(name) for name in jobs.processes])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    jobs.address = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield jobs
    finally:
        server.shutdown()
        server.server_close()
        for process in jobs.processes.values():
            process.kill()
            process.wait()
