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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import docker

from mnist_pipeline_tests.live import PROJECT

IMAGE = "this-machine"
"""A tree of empty folders: what a container runs is mounted into it."""

NOBODY = 65534


def _user(name: str) -> int:
    return next((user.pw_uid for user in pwd.getpwall() if user.pw_name == name), NOBODY)


FOLDERS = {"storage": NOBODY, "dagster": 0, "dagster/storage": NOBODY, "var/lib/postgresql/data": _user("postgres")}

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
            if reason := _wait_for(process, host, log):
                yield reason
            else:
                docker.DockerClient(host).api.import_image_from_data(_image(), repository=IMAGE, tag="latest")
                yield Containers(host)
                for container in docker.DockerClient(host).containers.list(all=True):
                    container.remove(force=True)
        finally:
            process.terminate()
            process.wait()
            subprocess.run(["umount", folder / "exec/netns/default"], stderr=subprocess.DEVNULL, check=False)
            shutil.rmtree(folder, ignore_errors=True)


def _wait_for(process: subprocess.Popen[bytes], host: str, log: Path) -> str | None:
    """Wait until the daemon answers. Returns why it never will."""
    while process.poll() is None:
        try:
            docker.DockerClient(host).ping()
            return None
        except docker.errors.DockerException:
            pass
    return f"dockerd could not start: {log.read_text()[-300:]}"


def _image() -> bytes:
    """The folders that volumes of compose.yaml are mounted on, with their owners in the images, and the users."""
    tree = io.BytesIO()
    with tarfile.open(fileobj=tree, mode="w") as archive:
        for path, owner in FOLDERS.items():
            folder = tarfile.TarInfo(path)
            folder.type, folder.uid, folder.gid, folder.mode = tarfile.DIRTYPE, owner, owner, 0o755
            archive.addfile(folder)
        users = Path("/etc/passwd").read_bytes()  # Docker looks for the name of a user before it mounts
        file = tarfile.TarInfo("etc/passwd")
        file.size = len(users)
        archive.addfile(file, io.BytesIO(users))
    return tree.getvalue()
