"""What orchestration costs: the full pipeline job's wall time beside the time when a step is at work, by executor.

The embedded digits and a short training, so that little but the cost of orchestration is there, in about 3 minutes; or
the full data and the default training with the executor that the job has:

    .venv/bin/python -m benchmarks.orchestration
    .venv/bin/python -m benchmarks.orchestration --full-data $MNIST_DIR --epochs 20 --executors preloaded --rounds 1

What a step imports by itself is in its time; what a server imported for all is not. Compare wall times.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import dagster as dg

from benchmarks.mnist import PROJECT, folder
from benchmarks.steps import CONFIG, environment
from benchmarks.tables import print_table
from mnist_pipeline.defs.jobs import EVERYTHING
from mnist_pipeline_tests.containers import Containers, containers
from mnist_pipeline_tests.live import OWN_VARIABLES
from mnist_pipeline_tests.ray_cluster import ONE_HOST, Cluster, cluster

EXECUTORS = {
    "in_process": "one process for all",
    "spawn": "multiprocess, each step a new process",
    "light": "multiprocess, forked from a server that has loaded the code location",
    "preloaded": "multiprocess, forked from a server that has loaded the machine learning too",
    "docker": "docker: training in a container of its own, the other steps as above",
    "ray": "ray: training as a job of a cluster of this one host, the other steps as above",
}


def engine(executor: str, home: Path, daemon: Containers | None, hosts: Cluster | None) -> dict[str, str]:
    """The variables that choose the engine of a deployment in `home`."""
    file = home / "executor.json"  # JSON is YAML
    if executor == "docker" and daemon:
        shared = daemon.config(home)
        shared["env_vars"].append("BENCHMARK_EXECUTOR=docker")
        file.write_text(json.dumps(shared))
        return {"EXECUTOR": "docker", "EXECUTOR_CONFIG": str(file), "DOCKER_HOST": daemon.host}
    if executor == "ray" and hosts:
        cluster = {"address": hosts.address, "env_vars": ["BENCHMARK_EXECUTOR=ray"]}
        compute = {"digit_classifier": {"cores": os.cpu_count()}}
        file.write_text(json.dumps({"ray": cluster, "compute": compute}))
        return {"EXECUTOR": "ray", "EXECUTOR_CONFIG": str(file)}
    return {"EXECUTOR": executor} if executor == "in_process" else {}


def run(
    executor: str, epochs: int, data: Path | None, daemon: Containers | None, hosts: Cluster | None
) -> tuple[float, float]:
    """Seconds of the run (its process), and of those during which a step was at work, from an empty instance."""
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "dagster.yaml").write_bytes((PROJECT / "dagster.yaml").read_bytes())
        kept = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES and name != "MNIST_DIR"}
        own = environment(Path(home), data)
        variables = kept | own | {"PYTHONPATH": str(PROJECT), "BENCHMARK_EXECUTOR": executor}
        variables |= engine(executor, Path(home), daemon, hosts)
        config = Path(home) / "config.json"
        steps = CONFIG | {"digit_classifier": {"epochs": epochs}}
        config.write_text(json.dumps({"ops": {step: {"config": values} for step, values in steps.items()}}))
        command = ["-m", "dagster", "job", "execute", "-m", "benchmarks.orchestration_definitions"]
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *command, "-j", EVERYTHING, "-c", str(config)],
            env=variables,
            cwd=home,
            check=False,
            capture_output=True,
            text=True,
        )
        wall = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        with dg.DagsterInstance.from_config(home) as instance:
            [run_record] = instance.get_runs()
            stats = instance.get_run_step_stats(run_record.run_id)
    times = [(step.start_time, step.end_time) for step in stats if step.start_time and step.end_time]
    if len(times) < len(stats):
        raise RuntimeError(f"not every step ran: {stats}")
    return wall, at_work(times)


def at_work(steps: list[tuple[float, float]]) -> float:
    """Seconds covered by at least one step: two may run at once."""
    covered = until = 0.0
    for start, end in sorted(steps):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    usual = [name for name in EXECUTORS if name not in ("docker", "ray")]  # Docker takes root, and Debian's docker.io
    parser.add_argument("--executors", nargs="+", choices=EXECUTORS, default=usual)
    parser.add_argument(
        "--full-data", type=folder, help="folder of the full MNIST, four IDX files; without: the sample"
    )
    arguments = parser.parse_args()
    data = arguments.full_data.resolve() if arguments.full_data else None
    seconds: dict[str, list[tuple[float, float]]] = {executor: [] for executor in arguments.executors}
    with (
        containers() if "docker" in arguments.executors else nullcontext() as daemon,
        cluster(ONE_HOST, {}) if "ray" in arguments.executors else nullcontext() as hosts,
    ):
        if isinstance(daemon, str):
            parser.error(f"docker: {daemon}")
        if hosts:
            hosts.head(cpus=os.cpu_count() or 1)
        for _ in range(arguments.rounds):  # interleaved, so that a noisy machine is noisy for all
            for executor, both in seconds.items():
                both.append(run(executor, arguments.epochs, data, daemon, hosts))
                print(executor, both[-1], file=sys.stderr, flush=True)
    rows = []
    for executor, both in seconds.items():
        walls, works = zip(*both, strict=True)
        outside = statistics.median(wall - work for wall, work in both)
        medians = (statistics.median(walls), statistics.median(works), outside)
        rows.append([EXECUTORS[executor], *(f"{value:.1f}" for value in medians)])
    print_table(["executor", "wall s", "in steps s", "outside steps s"], rows)


if __name__ == "__main__":
    main()
