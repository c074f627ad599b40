"""The machine and the namespace of process numbers: only there does a process number say something."""

import platform
from pathlib import Path
from typing import NamedTuple


class Host(NamedTuple):
    """The place of a process. Two containers of one machine are two places: each has a process 1."""

    name: str
    machine: str
    """The identity of the installation, empty where there is none."""
    boot: str
    """Another one each time that the machine is started; empty where that is not told."""
    processes: str
    """The namespace of the process numbers; empty where there is only one."""
    network: str = ""
    """The namespace of the network; empty where there is only one, and in what earlier code recorded."""

    @classmethod
    def here(cls) -> "Host":
        """Return where this process is."""
        machine, boot = (_content(path) for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"))
        return cls(platform.node(), machine, boot, _namespace("pid"), _namespace("net"))

    def is_same(self, other: "Host") -> bool:
        """Return whether process numbers mean the same in both: names may change while a machine runs."""
        if not self.boot:  # not Linux
            return self.name == other.name
        return (self.machine, self.boot, self.processes) == (other.machine, other.boot, other.processes)

    def was_restarted(self, now: "Host") -> bool:
        """Return whether `now` is the same machine or container after a new start: no process of before is left.

        A container, which has a name only, is another one with every namespace. One that shares its network with its
        machine, or with a second one, may be beside that: it does not count as the same.
        """
        if (self.name, self.machine) != (now.name, now.machine):
            return False
        if self.machine:
            return self.boot != now.boot
        return bool(self.network) and self.processes != now.processes and self.network != now.network


def _namespace(kind: str) -> str:
    try:
        return str(Path(f"/proc/self/ns/{kind}").readlink())
    except OSError:  # not Linux: there is one
        return ""


def _content(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
