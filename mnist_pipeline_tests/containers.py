"""A container daemon of the tests' own, without a network, and an image that is the files of this machine."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import docker

from mnist_pipeline_tests.live import PROJECT

IMAGE = "this-machine"
"""An empty tree: what a container runs is mounted into it."""

SYSTEM = [name for name in ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc") if Path(name).exists()]


class Containers(NamedTuple):
    """The daemon."""

    host: str
    """Its address, for DOCKER_HOST."""

    @property
    def client(self) -> docker.DockerClient:
        return docker.DockerClient(self.host)

    def config(self, writable: Path, **more: Any) -> dict[str, Any]:
        """What EXECUTOR_CONFIG holds: the machine read-only, and one folder to write to; `more` for the container."""
        read_only = {*SYSTEM, sys.base_prefix, sys.prefix, str(PROJECT)}
        path = f"{Path(sys.executable).parent}:{os.defpath}"
        return {
            "image": IMAGE,
            "env_vars": [f"PATH={path}", f"PYTHONPATH={PROJECT}", "PYTHONWARNINGS=ignore", "HOME=/tmp"],
            "container_kwargs": {
                "network_mode": "host",
                "read_only": True,
                "tmpfs": {"/tmp": ""},
                "volumes": [*(f"{name}:{name}:ro" for name in sorted(read_only)), f"{writable}:{writable}"],
                **more,
            },
        }


@contextmanager
def containers(folder: Path) -> Iterator[Containers | str]:
    """Run a daemon below `folder`; yields why not where that is not possible."""
    program = shutil.which("dockerd")
    if platform.system() != "Linux" or os.geteuid():
        yield "a container daemon of one's own takes Linux and root"
    elif program is None:
        yield "dockerd is absent (Debian: docker.io)"
    else:
        host, log = f"unix://{folder}/docker.sock", folder / "dockerd.log"
        options = {"--data-root": "data", "--exec-root": "exec", "--pidfile": "pid"}
        places = [f"{option}={folder / name}" for option, name in options.items()]
        # Two rules of networks that a machine need not allow, and that nothing here uses.
        command = [program, "--bridge=none", "--iptables=false", *places, "-H", host]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            if reason := _wait_for(process, host, log):
                yield reason
            else:
                docker.DockerClient(host).api.import_image_from_data(_empty_tree(), repository=IMAGE, tag="latest")
                yield Containers(host)
                for container in docker.DockerClient(host).containers.list(all=True):
                    container.remove(force=True)
        finally:
            process.terminate()
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], host: str, log: Path) -> str | None:
    """Wait until the daemon answers. Returns why it never will."""
    while process.poll() is None:
        try:
            docker.DockerClient(host).ping()
            return None
        except docker.errors.DockerException:
            pass
    return f"dockerd could not start: {log.read_text()[-300:]}"


def _empty_tree() -> bytes:
    return bytes(1024 * 10)  # the end of a tar archive, and nothing before it
