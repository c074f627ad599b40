"""What years of history cost: a folder, a model store and an event log that have grown, and each look at them.

    .venv/bin/python -m benchmarks.history [--files 100000] [--versions 10000] [--decisions 100000] [--events 100000]

One real version, decision and materialization are copied so many times, with names and times of their own. Seconds of
the processor for the tick of a sensor, of the wall for commands (whole processes) and requests; a few minutes and 10 GB
of disk.
"""

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import httpx

from benchmarks.steps import CONFIG
from benchmarks.tables import print_table
from mnist_pipeline.definitions import build_definitions
from mnist_pipeline.environment import PROJECT, Environment
from mnist_pipeline.ml.manifest import Decision
from mnist_pipeline.stores import LocalModelStore
from mnist_pipeline.stores.trail import Damaged, entry_name, key_of
from mnist_pipeline_tests.live import OWN_VARIABLES
from mnist_pipeline_tests.serve.service import process

ROUNDS = 3
COMMANDS = (
    *("models", "models --limit 200", "show {version}", "production", "decisions --limit 20", "card {version}"),
    *("compare {version} {other}", "rollback --reason measured --to {in_turn}", "experiment", "sweep", "summary"),
)
PAGES = ("/versions", "/versions/{version}/card", "/versions/{version}/compared", "/corrections", "/review/items")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("files", 100_000), ("versions", 10_000), ("decisions", 100_000), ("events", 100_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", help="where it stays, to be measured again (default: a temporary one)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        deployment = Grown(Path(arguments.folder or temporary))
        if not deployment.is_grown:
            deployment.build()
            show(deployment.sizes())
            deployment.grow_folders(arguments.files)
            show(deployment.ticks("small history"))
            deployment.grow_store(arguments.versions, arguments.decisions)
            deployment.grow_log(arguments.events)
        show(deployment.ticks("grown history"))
        show(deployment.commands())
        show(deployment.pages())


def show(rows: list[list[str]]) -> None:
    print_table(["what", "of", "seconds, or bytes"], rows)
    sys.stdout.flush()


class Grown:
    """A deployment with a history."""

    def __init__(self, folder: Path) -> None:
        self.home, self.storage, self.watched = (folder / name for name in ("home", "storage", "watched"))
        self.input = folder / "input"
        self.is_grown = self.home.exists()
        for path in (self.home, self.watched, self.input):
            path.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / "dagster.yaml", self.home)
        own = {"STORAGE_ROOT": str(self.storage), "DATASET_SOURCE": "sample", "LABELLED_DIR": str(self.watched)}
        own["PREDICTION_INPUT"] = str(self.input)
        self.environment = Environment.read(own)
        kept = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}
        self.variables = kept | own | {"DAGSTER_HOME": str(self.home), "PYTHONPATH": str(PROJECT)}
        self.store = LocalModelStore(base_path=str(self.storage / "models"))

    def build(self) -> None:
        """Run everything once, with a short training."""
        config = self.home / "config.json"  # JSON is YAML
        steps = CONFIG | {"digit_classifier": {"epochs": 1}}
        config.write_text(json.dumps({"ops": {step: {"config": values} for step, values in steps.items()}}))
        self._command("run", "--config", str(config))

    def sizes(self) -> list[list[str]]:
        """The bytes of the largest event of each asset."""
        largest: dict[str, int] = {}
        for database in (self.home / "history/runs").glob("*.db"):
            found = sqlite3.connect(database).execute(
                "SELECT asset_key, max(length(event)) FROM event_logs "
                "WHERE dagster_event_type = 'ASSET_MATERIALIZATION' GROUP BY asset_key"
            )
            for key, size in found:
                largest[key] = max(size, largest.get(key, 0))
        return [["a materialization", json.loads(key)[0], f"{size:,}"] for key, size in sorted(largest.items())]

    def grow_folders(self, files: int) -> None:
        """Fill the folders of labelled images and of images to predict."""
        for folder in (self.watched, self.input):
            for number in range(files):
                path = folder / str(number % 10) / f"{number // 10:06d}.png"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(b"an image")

    def grow_store(self, versions: int, decisions: int) -> None:
        """Copy the version and its decision, one a minute and more."""
        [name] = self.store.versions()
        [decision] = self.store.decisions()
        assert not isinstance(decision, Damaged)
        root = self.storage / "models"
        before = datetime.now(UTC) - timedelta(minutes=versions + 1)
        text = (root / name / "manifest.json").read_text()
        stamp = name.split("_")[2]
        for number in range(versions):
            copy = name.replace(stamp, f"{before + timedelta(minutes=number):%Y%m%dT%H%M%S}.000Z")
            (root / copy).mkdir()
            for file in (root / name).iterdir():
                if file.is_file() and file.name != "manifest.json":
                    os.link(file, root / copy / file.name)
            (root / copy / "manifest.json").write_text(text.replace(name, copy))
        refused = decision.model_copy(update={"outcome": "refused", "sequence": 0, "replaces": None})
        for number in range(decisions):
            when = before + timedelta(seconds=number)
            entry: Decision = refused.model_copy(
                update={"id": f"{when:%Y%m%dT%H%M%S.%fZ}-{number:08x}", "decided_at": when}
            )
            (root / key_of(entry_name(entry))).write_text(entry.model_dump_json(indent=2))

    def grow_log(self, events: int) -> None:
        """Copy the materializations and observations of all assets in the index of the event log."""
        with sqlite3.connect(self.home / "history/runs/index.db") as index:
            columns = [row[1] for row in index.execute("PRAGMA table_info(event_logs)") if row[1] != "id"]
            listed = ", ".join(columns)
            highest = index.execute("SELECT max(id) FROM event_logs").fetchone()[0]
            where = f"dagster_event_type IN ('ASSET_MATERIALIZATION', 'ASSET_OBSERVATION') AND id <= {highest}"
            [[count]] = index.execute(f"SELECT count(*) FROM event_logs WHERE {where}").fetchall()
            for _ in range(events // count):
                index.execute(f"INSERT INTO event_logs ({listed}) SELECT {listed} FROM event_logs WHERE {where}")

    def ticks(self, when: str) -> list[list[str]]:
        """Processor seconds of the first tick of each sensor, and of the second, when nothing has changed."""
        rows = []
        definitions = build_definitions(self.environment)
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            for sensor in definitions.sensors or []:
                if isinstance(sensor, dg.AutomationConditionSensorDefinition):
                    continue  # Dagster evaluates it in its own way
                definition = definitions.get_repository_def().get_sensor_def(sensor.name)
                cursor = None
                for which in ("first tick", "next tick"):
                    with dg.build_sensor_context(
                        instance, definitions=definitions, resources=definitions.resources, cursor=cursor
                    ) as context:
                        began = time.process_time()
                        tick = definition.evaluate_tick(context)
                        seconds = time.process_time() - began
                    rows.append([f"{which} of {sensor.name}", when, f"{seconds:.3f}"])
                    cursor = tick.cursor or cursor
                    for event in tick.asset_events:
                        instance.report_runless_asset_event(event)
        return rows

    def commands(self) -> list[list[str]]:
        """Wall seconds of each command as a process, the median."""
        other, *_, version = self.store.versions()
        rows = []

        def carry_out(command: str) -> None:
            deployed = self.store.production()
            in_turn = other if deployed and deployed.version == version else version
            self._command(*command.format(version=version, other=other, in_turn=in_turn).split())

        for command in COMMANDS:
            rows.append([f"python -m mnist_pipeline {command}", "grown history", _median(partial(carry_out, command))])
        return rows

    def pages(self) -> list[list[str]]:
        """Wall seconds of what the pages of the service ask for, the median."""
        version, rows = self.store.versions()[-1], []
        variables: dict[str, Any] = self.variables
        with process(**variables) as (url, _, _):
            for page in PAGES:
                get = partial(httpx.get, url + page.format(version=version), timeout=600)
                rows.append([f"GET {page}", "grown history", _median(get)])
        return rows

    def _command(self, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "mnist_pipeline", *arguments],
            cwd=self.home,
            env=self.variables,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stdout[-2000:] + done.stderr)


def _median(work: Callable[[], object]) -> str:
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return f"{sorted(times)[ROUNDS // 2]:.2f}"


if __name__ == "__main__":
    main()
