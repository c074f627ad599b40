"""A container daemon of the tests' own, without a network, and an image that is the files of this machine."""

import io
import os
import platform
import pwd
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import docker

from mnist_pipeline_tests.live import PROJECT

IMAGE = "this-machine"
"""A tree of empty folders: what a container runs is mounted into it."""

START_SECONDS = 60
"""A daemon that does not answer by then will not."""

NOBODY = 65534


def _user(name: str) -> int:
    return next((user.pw_uid for user in pwd.getpwall() if user.pw_name == name), NOBODY)


FOLDERS = {
    "tmp": 0,
    "storage": NOBODY,
    "dagster": 0,
    "dagster/storage": NOBODY,
    "var/lib/postgresql/data": _user("postgres"),
}

SYSTEM = [name for name in ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc") if Path(name).exists()]
THIS_MACHINE = [f"{path}:{path}:ro" for path in sorted({*SYSTEM, sys.base_prefix, sys.prefix, str(PROJECT)})]
"""The volumes that make a container of it."""

VARIABLES = {
    "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
    "PYTHONPATH": str(PROJECT),
    "PYTHONWARNINGS": "ignore",
    "HOME": "/tmp",
}


class Containers(NamedTuple):
    """The daemon."""

    host: str
    """Its address, for DOCKER_HOST."""

    @property
    def client(self) -> docker.DockerClient:
        return docker.DockerClient(self.host)

    def config(self, writable: Path, **more: Any) -> dict[str, Any]:
        """What EXECUTOR_CONFIG holds: the machine read-only, and one folder to write to; `more` for the container."""
        return {
            "image": IMAGE,
            "env_vars": [f"{name}={value}" for name, value in VARIABLES.items()],
            "container_kwargs": {
                "network_mode": "host",
                "read_only": True,
                "tmpfs": {"/tmp": ""},
                "volumes": [*THIS_MACHINE, f"{writable}:{writable}"],
                **more,
            },
        }


@contextmanager
def containers() -> Iterator[Containers | str]:
    """Run a daemon; yields why not where that is not possible."""
    program = shutil.which("dockerd")
    if platform.system() != "Linux" or os.geteuid():
        yield "a container daemon of one's own takes Linux and root"
    elif program is None:
        yield "dockerd is absent (Debian: docker.io)"
    else:
        folder = Path(tempfile.mkdtemp(prefix="docker"))  # the path of a socket must be short
        host, log = f"unix://{folder}/docker.sock", folder / "dockerd.log"
        options = {"--data-root": "data", "--exec-root": "exec", "--pidfile": "pid"}
        places = [f"{option}={folder / name}" for option, name in options.items()]
        # Two rules of networks that a machine need not allow, and that nothing here uses.
        command = [program, "--bridge=none", "--iptables=false", *places, "-H", host]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            if reason := _wait_for(process, host, log) or _try_out(docker.DockerClient(host)):
                yield reason
            else:
                yield Containers(host)
                for container in docker.DockerClient(host).containers.list(all=True):
                    container.remove(force=True)
        finally:
            process.terminate()
            process.wait()
            subprocess.run(["umount", folder / "exec/netns/default"], stderr=subprocess.DEVNULL, check=False)
            shutil.rmtree(folder, ignore_errors=True)


def _wait_for(process: subprocess.Popen[bytes], host: str, log: Path) -> str | None:
    """Wait until the daemon answers. Returns why it does not."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            docker.DockerClient(host).ping()
            return None
        except docker.errors.DockerException:
            time.sleep(0.1)
    return f"dockerd could not start: {log.read_text()[-300:]}"


def _try_out(client: docker.DockerClient) -> str | None:
    """Start a container with a limit. Returns why that is not possible on this machine."""
    client.api.import_image_from_data(_image(), repository=IMAGE, tag="latest")
    options = {"volumes": THIS_MACHINE, "network_mode": "host", "mem_limit": "100m", "remove": True}
    try:
        client.containers.run(IMAGE, ["/bin/true"], **options)
    except docker.errors.DockerException as error:
        return f"containers cannot be started here: {error}"
    return None


def _image() -> bytes:
    """The folders that volumes of compose.yaml are mounted on, with their owners in the images, and the users."""
    tree = io.BytesIO()
    with tarfile.open(fileobj=tree, mode="w") as archive:
        for path, owner in FOLDERS.items():
            folder = tarfile.TarInfo(path)
            folder.type, folder.uid, folder.gid = tarfile.DIRTYPE, owner, owner
            folder.mode = 0o1777 if path == "tmp" else 0o755  # that of a tmpfs on it when a container starts again
            archive.addfile(folder)
        users = Path("/etc/passwd").read_bytes()  # Docker looks for the name of a user before it mounts
        file = tarfile.TarInfo("etc/passwd")
        file.size = len(users)
        archive.addfile(file, io.BytesIO(users))
    return tree.getvalue()
