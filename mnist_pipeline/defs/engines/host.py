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

    @classmethod
    def here(cls) -> "Host":
        """Return where this process is."""
        try:
            processes = str(Path("/proc/self/ns/pid").readlink())
        except OSError:  # not Linux: there is one
            processes = ""
        machine, boot = (_content(path) for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"))
        return cls(platform.node(), machine, boot, processes)

    def was_restarted(self, now: "Host") -> bool:
        """Return whether `now` is the same machine or container after a new start: no process of before is left."""
        return (self.name, self.machine) == (now.name, now.machine) and self != now


def _content(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
