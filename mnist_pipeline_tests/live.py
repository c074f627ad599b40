"""A deployment as it runs in production: code server and daemon as processes of their own, on an empty DAGSTER_HOME."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import yaml
from dagster._daemon.daemon import MonitoringDaemon

from mnist_pipeline.environment import Environment
from mnist_pipeline_tests.task.examples import TINY

PROJECT = Path(__file__).parents[1]
EVALUATION_SECONDS = 2
DAEMON = f"""
from dagster._core.remote_representation.external import RemoteSensor
from dagster._daemon import sensor
assert sensor.MIN_INTERVAL_LOOP_TIME == 5
sensor.MIN_INTERVAL_LOOP_TIME = RemoteSensor.min_interval_seconds = {EVALUATION_SECONDS}
from dagster._daemon.__main__ import main
main()
"""
"""Dagster's daemon with another clock: it looks at its sensors every two seconds instead of every five."""

SETTINGS = {
    "digit_classifier": TINY | {"epochs": 30, "batch_size": 64},
    "production_digit_classifier": {"accuracy_threshold": 0.5},
}
"""A training of some seconds, by which every run of automation trains: enough to be killed in."""

OWN_VARIABLES = {name.upper() for name in Environment.model_fields}


CHAIN = [
    "raw_mnist_data",
    "processed_mnist_data",
    "digit_classifier",
    "model_evaluation",
    "production_digit_classifier",
    "batch_digit_predictions",
]
"""What automation builds."""


class Count(NamedTuple):
    """What was launched so far."""

    runs: int
    steps: int
    """Of assets and of checks; a step that is tried again counts once."""
    trainings: int


def wait_until(condition: Any, what: str, seconds: float = 120, every: float = 0.02) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(every)


class Deployment:
    """Starts, kills and stops the processes, and looks at what they did, through the instance only."""

    def __init__(
        self,
        folder: Path,
        module: str = "mnist_pipeline.definitions",
        settings: dict[str, dict[str, Any]] = SETTINGS,
        instance: Path | str = PROJECT / "dagster.yaml",
        **variables: str,
    ) -> None:
        self.folder, self.module = folder, module
        home = folder / "dagster_home"
        home.mkdir(parents=True)
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump({"ops": {step: {"config": values} for step, values in settings.items()}}))
        instance_settings = Path(instance).read_text()
        # The same settings, at the speed of a test.
        for name in ("poll_interval_seconds", "free_slots_after_run_end_seconds"):
            assert f"{name}: 30" in instance_settings
            instance_settings = instance_settings.replace(f"{name}: 30", f"{name}: 2")
        (home / "dagster.yaml").write_text(instance_settings)
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in OWN_VARIABLES and not name.startswith("DAGSTER_")
        }
        self.variables = kept | {
            "DAGSTER_HOME": str(home),
            "STORAGE_ROOT": str(folder / "storage"),
            "MODEL_RETRAIN": "eager",
            "PIPELINE_CONFIG": str(config),
            "PYTHONPATH": str(PROJECT),
            "PYTHONWARNINGS": "ignore",
            **variables,
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        workspace = self.folder / "workspace.yaml"
        workspace.write_text(
            f"load_from:\n  - grpc_server: {{host: 127.0.0.1, port: {port}, location_name: mnist_pipeline}}\n"
        )
        server = ["-m", "dagster", "api", "grpc", "-h", "127.0.0.1", "-p", str(port), "-m", self.module]
        self.processes = [self._spawn("code_server", server)]
        self.wait_for(lambda: _listens(port), "the code server to listen", 60)
        self.start_daemon()

    def start_daemon(self) -> None:
        self.processes.append(self._spawn("daemon", ["-c", DAEMON, "run", "-w", str(self.folder / "workspace.yaml")]))

    def kill_daemon(self) -> None:
        daemon = self.processes.pop()
        os.killpg(daemon.pid, signal.SIGKILL)
        daemon.wait()

    def kill(self) -> None:
        """SIGKILL for both, and for the runs and steps that they started: as a crash of the machine does."""
        for process in self.processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.processes = []

    def stop(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        self.processes = []

    def is_alive(self) -> bool:
        return all(process.poll() is None for process in self.processes)

    @cached_property
    def instance(self) -> dg.DagsterInstance:
        """Opened once: opening it costs more than most looks."""
        return dg.DagsterInstance.from_config(self.variables["DAGSTER_HOME"])

    def wait_for(self, condition: Callable[[], Any], what: str, seconds: float = 120) -> Any:
        """The first true value of `condition`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := condition():
                return value
            if not self.is_alive():
                break
            time.sleep(1)  # a look at the instance costs as much processor time as a step of a run
        raise AssertionError(f"waited in vain for {what}:\n{self.log()}")

    def settle(self, within: float = 240) -> None:
        """Until nothing runs, and all sensors have looked twice at what there is and nothing came of it.

        Twice, since a file is noticed by one look and acted upon by the next.
        """
        since, last = time.time(), -1

        def quiet() -> bool:
            nonlocal since, last
            now = self.instance.get_runs_count()
            if now != last or self.running():
                since, last = time.time(), now
                return False
            return min(self.looks(since).values(), default=0) >= 2

        self.wait_for(quiet, "things to come to rest", within)

    def looks(self, since: float) -> dict[str, int]:
        """How often each sensor has looked, from a moment on, to the end of its look."""
        return {
            state.name: sum(
                tick.is_completed and tick.timestamp > since
                for tick in self.instance.get_ticks(state.instigator_origin_id, state.selector_id, after=since)
            )
            for state in self.instance.all_instigator_state()
        }

    def count(self) -> Count:
        runs = self.instance.get_runs()
        started = [self.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_START) for run in runs]
        steps = [entry.step_key for entries in started for entry in entries]
        return Count(len(runs), len(steps), steps.count("digit_classifier"))

    def running(self) -> list[dg.DagsterRun]:
        """Runs that are not finished, and those that died and will be started again."""
        runs = self.instance.get_runs()
        started_again = {run.parent_run_id for run in runs}
        return [
            run
            for run in runs
            if not run.is_finished or (run.tags.get("dagster/will_retry") == "true" and run.run_id not in started_again)
        ]

    def built(self, asset: str) -> list[dict[str, Any]]:
        """The metadata of all materializations, oldest first, with their time and data version."""
        records = self.instance.fetch_materializations(dg.AssetKey(asset), limit=1000, ascending=True).records
        return [
            {name: value.value for name, value in event.metadata.items()}
            | {"timestamp": record.timestamp, "data_version": (event.tags or {})["dagster/data_version"]}
            for record in records
            if (event := record.asset_materialization)
        ]

    def epochs(self) -> int:
        """How many epochs were reported by all trainings together."""
        return len(self.instance.fetch_observations(dg.AssetKey("digit_classifier"), limit=1000).records)

    def looked_at(self) -> float:
        """When the daemon began its last look at whether runs are alive."""
        beat = self.instance.get_daemon_heartbeats().get(MonitoringDaemon.daemon_type())
        return beat.timestamp if beat else 0

    def launch(self, kind: str, name: str, config: dict[str, Any] | None = None) -> None:
        """Materialize `assets` or run a `job` by hand, as a user does on the command line."""
        shutil.copy(PROJECT / "pyproject.toml", self.folder)  # by which dg finds the project
        command = [str(Path(sys.executable).with_name("dg")), "launch", f"--{kind}", name]
        command += ["--config-json", json.dumps({"ops": config})] if config else []
        variables = self.variables | {"VIRTUAL_ENV": sys.prefix}
        done = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)

    def submit(self, job: str) -> None:
        """Queue a job for the daemon, as the UI does: its run is a process of the code server."""
        workspace = str(self.folder / "workspace.yaml")
        command = [sys.executable, "-m", "dagster", "job", "launch", "-w", workspace, "-j", job]
        done = subprocess.run(command, cwd=self.folder, env=self.variables, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)

    def log(self) -> str:
        return "\n".join(f"{path.name}:\n{path.read_text()[-4000:]}" for path in sorted(self.folder.glob("*.log")))

    def _spawn(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder,
                env=self.variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
