"""What orchestration costs: the full pipeline job's wall time beside the time in its steps, under each executor.

The embedded digits and a short training, so that little but the cost of orchestration is there. About 3 minutes:

    .venv/bin/python -m benchmarks.orchestration
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dagster as dg

from benchmarks.mnist import PROJECT
from benchmarks.tables import print_table

EXECUTORS = {
    "in_process": "one process for all",
    "spawn": "multiprocess, each step a new process",
    "one_by_one": "multiprocess, forked from a server that has loaded the code location",
    "all_steps": "multiprocess, forked from a server that has loaded the machine learning too",
}


def run(executor: str, epochs: int) -> tuple[float, float]:
    """Seconds of the run (its process), and of its steps together, from an empty instance."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "dagster.yaml").write_bytes((PROJECT / "dagster.yaml").read_bytes())
        variables = os.environ | {
            "DAGSTER_HOME": folder,
            "STORAGE_ROOT": f"{folder}/storage",
            "MNIST_SOURCE": "sample",
            "PYTHONPATH": str(PROJECT),
        }
        config = Path(folder) / "config.json"  # JSON is YAML
        config.write_text(json.dumps({"ops": {"digit_classifier": {"config": {"epochs": epochs}}}}))
        command = ["-m", "dagster", "job", "execute", "-m", "benchmarks.orchestration_definitions", "-a", executor]
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *command, "-j", "everything", "-c", str(config)],
            env=variables,
            cwd=folder,
            check=False,
            capture_output=True,
            text=True,
        )
        wall = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        with dg.DagsterInstance.from_config(folder) as instance:
            [run_record] = instance.get_runs()
            stats = instance.get_run_step_stats(run_record.run_id)
    return wall, sum((step.end_time or 0) - (step.start_time or 0) for step in stats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    seconds: dict[str, list[tuple[float, float]]] = {executor: [] for executor in EXECUTORS}
    for _ in range(arguments.rounds):  # interleaved, so that a noisy machine is noisy for all
        for executor in EXECUTORS:
            seconds[executor].append(run(executor, arguments.epochs))
            print(executor, seconds[executor][-1], file=sys.stderr, flush=True)
    rows = []
    for executor, what in EXECUTORS.items():
        walls, works = zip(*seconds[executor], strict=True)
        outside = statistics.median(wall - work for wall, work in seconds[executor])
        rows.append(
            [what, *(f"{value:.1f}" for value in (statistics.median(walls), statistics.median(works), outside))]
        )
    print_table(["executor", "wall s", "in steps s", "outside them s"], rows)


if __name__ == "__main__":
    main()
