"""A real MLflow server, in an environment of its own: it needs an older pyarrow than the project."""

import fcntl
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx

from mnist_pipeline_tests.live import wait_until

MLFLOW = "mlflow==3.17.2"


def install_mlflow(folder: Path) -> Path | str:
    """Return MLflow's command, installed into `folder` once; where that is not possible, why."""
    program, uv = folder / "environment" / "bin" / "mlflow", shutil.which("uv", path=str(Path(sys.executable).parent))
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two workers one installs
        if program.exists():
            return program
        environment = str(program.parents[1])
        python = str(program.with_name("python"))
        commands = [[sys.executable, "-m", "venv", environment], [python, "-m", "pip", "install", "--quiet", MLFLOW]]
        if uv:
            commands[1] = [uv, "pip", "install", "--quiet", "--python", python, MLFLOW]
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                return f"{MLFLOW} could not be installed: {done.stderr[-300:]}"
    return program


class MlflowServer:
    """A server that can be killed, and started again with what it knows."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.program, self.folder = program, folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [str(self.program), "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/db"]
        command += ["--artifacts-destination", f"{self.folder}/files"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={"PATH": f"{self.program.parent}:{os.defpath}", "MLFLOW_DISABLE_TELEMETRY": "true"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._answers, "MLflow to listen", 300, 0.2)

    def kill(self) -> None:
        """SIGKILL, for all its processes."""
        if self._process:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        assert self._process and self._process.poll() is None, (self.folder / "log").read_text()
        try:
            return httpx.get(f"{self.url}/health", timeout=10).status_code == 200
        except httpx.HTTPError:
            return False
