"""A Postgres server of the tests' own, which can be stopped and started."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER, PASSWORD = "dagster", "a password: not % one / of @ the easy"


class Postgres:
    """The server, on loopback and on one address more."""

    database = "dagster"

    def __init__(self, programs: Path, folder: Path, address: str) -> None:
        self.programs, self.folder, self.address = programs, folder, address
        # It refuses to run as root; Debian's package has made a user for it.
        self._as_user = (
            ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if not os.geteuid() else []
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        folder.mkdir()
        if self._as_user:
            shutil.chown(folder, "postgres", "postgres")
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if self._as_user:
            shutil.chown(secret, "postgres")
        access = ["--auth=scram-sha-256", f"--username={USER}", f"--pwfile={secret}"]
        self._run("initdb", "--no-sync", "--encoding=UTF8", *access, "-D", str(folder / "data"))
        with (folder / "data/pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {address}/24 scram-sha-256\n")

    @property
    def variables(self) -> dict[str, str]:
        """The variables that deploy/dagster.postgres.yaml reads."""
        own = {"HOST": self.address, "PORT": str(self.port), "USER": USER, "PASSWORD": PASSWORD, "DB": self.database}
        return {f"DAGSTER_POSTGRES_{name}": value for name, value in own.items()}

    def start(self) -> None:
        options = (
            f"-p {self.port} -c listen_addresses=127.0.0.1,{self.address} -c unix_socket_directories= -c fsync=off"
        )
        self._run(
            "pg_ctl", "start", "-w", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-o", options
        )

    def stop(self, mode: str = "fast") -> None:
        """`fast` ends its connections, `immediate` is a crash."""
        self._run("pg_ctl", "stop", "-w", "-m", mode, "-D", str(self.folder / "data"))

    def client(self, program: str, *arguments: str) -> str:
        """Run one of Postgres's commands on the database; returns its output."""
        where = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": USER, "PGPASSWORD": PASSWORD}
        done = subprocess.run(
            [self.programs / program, *arguments], env=os.environ | where, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_user, str(self.programs / program), *arguments]
        done = subprocess.run(
            command, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr.decode())


def programs() -> Path | None:
    """Return the folder of Postgres's commands, None where they are absent."""
    debian, path = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")), shutil.which("initdb")
    return debian[-1].parent if debian else Path(path).parent if path else None


@contextmanager
def postgres(address: str = "127.0.0.1") -> Iterator[Postgres | str]:
    """Run a server on loopback and on `address`; yields why not where that is not possible."""
    found = programs()
    if found is None:
        yield "Postgres is absent (Debian: postgresql)"
        return
    if not os.geteuid() and not any(user.pw_name == "postgres" for user in pwd.getpwall()):
        yield "Postgres does not run as root, and there is no user `postgres`"
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # the server is another user's
        server = Postgres(found, Path(folder) / "postgres", address)
        server.start()
        server.client("createdb", server.database)
        try:
            yield server
        finally:
            server.stop("immediate")
