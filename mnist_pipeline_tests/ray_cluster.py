"""A Ray cluster of the tests' own: of two hosts, network namespaces joined by a cable, or of one that is both."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from mnist_pipeline.defs.engines.ray_client import UNREACHABLE, Client
from mnist_pipeline_tests.live import PROJECT, wait_until

START_SECONDS = 120
"""A host that has not joined by then will not."""


class Network(NamedTuple):
    """The addresses of two hosts, and how a command gets to run on the second one."""

    first: str
    second: str
    on_second: list[str]
    cable: str | None


ONE_HOST = Network("127.0.0.1", "127.0.0.1", [], None)
"""This machine, in place of both."""


@contextmanager
def network() -> Iterator[Network]:
    """Make a second host out of a network namespace; where that is not allowed, this machine is both."""
    name, subnet = f"ray{os.getpid()}", f"198.18.{os.getpid() % 250}"  # a range that is kept for tests of networks
    first, second, cable = f"{subnet}.1", f"{subnet}.2", f"v{os.getpid()}"
    if os.geteuid() or shutil.which("ip") is None or not _ip(f"netns add {name}"):
        yield ONE_HOST
        return
    try:
        commands = (
            f"link add {cable} type veth peer name {cable}b netns {name}",
            f"addr add {first}/24 dev {cable}",
            f"link set {cable} up",
            f"-n {name} addr add {second}/24 dev {cable}b",
            f"-n {name} link set {cable}b up",
            f"-n {name} link set lo up",
        )
        if all(_ip(command) for command in commands):
            yield Network(first, second, ["ip", "netns", "exec", name], cable)
        else:
            yield ONE_HOST
    finally:
        _ip(f"link del {cable}")
        _ip(f"netns del {name}")


def _ip(arguments: str) -> bool:
    return not subprocess.run(["ip", *arguments.split()], stderr=subprocess.DEVNULL, check=False).returncode


class Cluster:
    """The hosts of a cluster, which join and are killed."""

    def __init__(self, network: Network, variables: Mapping[str, str], hidden: Path | None = None) -> None:
        """`variables` are those that the hosts have of their own: what a deployment does not pass on.

        Instead of the folder `hidden` the second host has an empty one.
        """
        self.hide = ["sh", "-c", f'mount -t tmpfs none "{hidden}" && exec "$@"', "sh"] if hidden else []
        self.network, self.folder = network, Path(tempfile.mkdtemp(prefix="ray"))  # the path of a socket must be short
        kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self.variables = kept | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(PROJECT), **variables}
        self.hosts: list[subprocess.Popen[bytes]] = []
        self.port, dashboard = _free_port(), _free_port()
        self.address = f"http://{network.first}:{dashboard}"
        self._dashboard = ["--dashboard-host", network.first, "--dashboard-port", str(dashboard)]

    def head(self, cpus: int, **more: Any) -> None:
        """Begin, on the first host."""
        options = ["--head", "--port", str(self.port), "--temp-dir", str(self.folder), *self._dashboard]
        client = ["--ray-client-server-port", str(_free_port())]
        self._start(self.network.first, [*options, *client], cpus, **more)

    def join(self, cpus: int, *, on_second: bool = True, **more: Any) -> None:
        """Let a host join: the second one, or more of the first."""
        address = self.network.second if on_second else self.network.first
        self._start(address, ["--address", f"{self.network.first}:{self.port}"], cpus, on_second=on_second, **more)

    def _start(
        self,
        address: str,
        options: list[str],
        cpus: int,
        *,
        gpus: int = 0,
        on_second: bool = False,
        core: int | None = None,
    ) -> None:
        before = len(self._alive())
        amounts = ["--num-cpus", str(cpus), "--num-gpus", str(gpus), "--object-store-memory", str(100 << 20)]
        agent = ["--dashboard-agent-listen-port", str(_free_port())]
        pinned = [] if core is None else ["taskset", "-c", str(core)]
        ray = [*pinned, str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
        # `ip netns exec` gives it mounts of its own, too.
        place = [*self.network.on_second, *self.hide] if on_second and self.network.cable else []
        command = [*place, *ray, "--node-ip-address", address]
        with (self.folder / "hosts.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, *options, *amounts, *agent],
                env=self.variables,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.hosts.append(process)
        wait_until(
            lambda: process.poll() is not None or len(self._alive()) > before, "a host to join", START_SECONDS, 0.5
        )
        assert process.poll() is None, (self.folder / "hosts.log").read_text()[-2000:]

    def _alive(self) -> list[dict[str, Any]]:
        try:
            return Client(self.address).hosts()
        except UNREACHABLE:  # it begins
            return []

    def kill(self, number: int) -> None:
        """Let a host be gone, as without power: no process of it says good-bye."""
        host = self.hosts[number]
        processes = [host, *psutil.Process(host.pid).children(recursive=True)]
        if number and self.network.cable:
            _ip(f"link set {self.network.cable} down")
        for process in processes:
            process.send_signal(signal.SIGKILL)
        host.wait()

    def node_of(self, job: str) -> int:
        """Return which host has a job, by the order in which they joined."""
        details = Client(self.address).get_job_info(job)
        nodes = sorted(self._alive(), key=lambda node: node["start_time_ms"])
        return [node["node_id"] for node in nodes].index(details.driver_node_id)

    def stop(self) -> None:
        for host in reversed(self.hosts):
            if host.poll() is None:
                processes = psutil.Process(host.pid).children(recursive=True)
                host.terminate()
                host.wait(60)
                for process in psutil.wait_procs(processes, 10)[1]:
                    process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def cluster(network: Network, variables: Mapping[str, str], hidden: Path | None = None) -> Iterator[Cluster]:
    """Give a cluster that is ended at the end."""
    found = Cluster(network, variables, hidden)
    try:
        yield found
    finally:
        found.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])
