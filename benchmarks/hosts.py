"""What a second host is worth to a sweep: the same trials on a Ray cluster of one host and of two.

As root, with Debian's postgresql, some ten minutes on the embedded digits:

    .venv/bin/python -m benchmarks.hosts --trials 12 --epochs 20

A host is a network namespace whose processes may use one core; the run of a trial is a process of the code server, its
training a job on a host that has a core free. History in Postgres, values and versions in a bucket, the daemon's
sensor looks for trials every 5 s, and starts as many as there are hosts.
"""

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import Any

import boto3
import yaml
from moto.server import ThreadedMotoServer

from benchmarks.mnist import PROJECT
from benchmarks.sweeps import sweep
from benchmarks.tables import print_table
from mnist_pipeline.environment import Environment
from mnist_pipeline.experiments.sweep import parse_sweep
from mnist_pipeline.experiments.trials import Sweeps
from mnist_pipeline.stores import store_from_environment
from mnist_pipeline_tests.live import Deployment
from mnist_pipeline_tests.postgres import postgres
from mnist_pipeline_tests.ray_cluster import Network, cluster, network

KEYS = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "hosts"
SETTINGS: dict[str, dict[str, Any]] = {
    "digit_classifier": {"epochs": 2},
    "production_digit_classifier": {"accuracy_threshold": 0.5},
}


def seconds(hosts: int, trials: int, epochs: int, between: Network, store: str) -> tuple[float, list[float]]:
    """Seconds from the start of a sweep until its last trial is done, and of each training."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = stack.enter_context(postgres(between.first))
        if isinstance(database, str):
            raise RuntimeError(database)
        ray = stack.enter_context(cluster(between, KEYS | database.variables))
        ray.head(cpus=1, core=0)
        if hosts > 1:
            ray.join(cpus=1, core=1)
        file = folder / "executor.yaml"
        compute = {step: {"cores": 1, "memory_mib": 1024} for step in ("digit_classifier", "trial")}
        file.write_text(yaml.safe_dump({"ray": {"address": ray.address}, "compute": compute}))
        root = f"s3://{BUCKET}/{hosts}"
        own = {
            "STORAGE_ROOT": root,
            "MODEL_STORE": f"{root}/models",
            "S3_ENDPOINT_URL": store,
            "AUTOMATION_SECONDS": "5",
        }
        own |= {"EXECUTOR": "ray", "EXECUTOR_CONFIG": str(file), "DATASET_SOURCE": "sample", "OMP_NUM_THREADS": "1"}
        os.environ.update(KEYS | database.variables)  # it looks at both from here
        instance = PROJECT / "deploy" / "dagster.postgres.yaml"
        deployment = Deployment(
            folder / "deployment", "mnist_pipeline.definitions", SETTINGS, instance, **own, **KEYS, **database.variables
        )
        deployment.start()
        try:
            deployment.wait_for(lambda: deployment.built("batch_digit_predictions"), "the first build", 900)
            deployment.settle(600)
            deployment.instance.event_log_storage.set_concurrency_slots("trials", hosts)
            sweeps = Sweeps(store_from_environment(Environment.read(own)))
            began = time.perf_counter()
            sweeps.begin(parse_sweep(sweep(trials, epochs) | {"name": "some"}, "the benchmark"))
            deployment.wait_for(lambda: sweeps.read("some").is_complete, "the sweep", 3600)
            wall = time.perf_counter() - began
            trained = [trial.seconds or 0.0 for trial in sweeps.read("some").trials if trial.version]
            if len(trained) < trials:
                raise RuntimeError(f"not every trial has a version: {sweeps.read('some')}")
            return wall, trained
        finally:
            deployment.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    rows: list[list[str]] = []
    walls: list[float] = []
    with network() as between:
        if between.cable is None:
            parser.error("network namespaces cannot be made here: they take Linux, root and the command `ip`")
        server = ThreadedMotoServer(ip_address=between.first, port=0, verbose=False)
        server.start()
        url = "http://{}:{}".format(*server.get_host_and_port())
        os.environ.update(KEYS)
        boto3.resource("s3", endpoint_url=url).create_bucket(Bucket=BUCKET)
        for hosts in (1, 2):
            wall, trained = seconds(hosts, options.trials, options.epochs, between, url)
            walls.append(wall)
            rows.append([f"{hosts}", f"{wall:.0f} s", f"{fmean(trained):.1f} s", f"{walls[0] / wall:.2f}"])
            print(f"{hosts} hosts: {wall:.0f} s", file=sys.stderr, flush=True)
        server.stop()
    what = f"hosts, {options.trials} trials of {options.epochs} epochs"
    print_table([what, "all", "a training", "times as fast"], rows)


if __name__ == "__main__":
    main()
