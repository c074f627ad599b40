"""The whole graph on S3, by a server on loopback: seconds and requests of a first and of a second run.

`python -m benchmarks.buckets`. It uses nothing but the variables that earlier versions of the code have too, so that it
can be copied into one of them, together with `mnist_pipeline_tests/clouds.py`, and the two be compared.
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

import boto3
import dagster as dg
from moto.server import ThreadedMotoServer

from benchmarks.tables import print_table
from mnist_pipeline.definitions import build_definitions
from mnist_pipeline.environment import Environment
from mnist_pipeline_tests.clouds import faulty
from mnist_pipeline_tests.task.examples import TINY, small_dataset, write_files

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}


def run(job: dg.JobDefinition, config: dict[str, object], count: Counter[str]) -> tuple[float, int]:
    """Seconds and requests of one run in this process."""
    count.clear()
    began = time.perf_counter()
    with dg.DagsterInstance.ephemeral() as instance:
        assert job.execute_in_process(run_config=config, instance=instance).success
    return time.perf_counter() - began, count.total()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs, each pair in a bucket of its own")
    options = parser.parse_args()
    os.environ.update(CREDENTIALS)
    count: Counter[str] = Counter()

    def note(method: str, path: str) -> None:
        count[method] += 1

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    rows = []
    steps = {"digit_classifier": TINY, "production_digit_classifier": {"accuracy_threshold": 0.3}}
    config: dict[str, object] = {"ops": {step: {"config": values} for step, values in steps.items()}}
    with faulty(f"http://{host}:{port}", note) as url, tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), small_dataset())
        for number in range(options.rounds):
            bucket = f"benchmark-{number}"
            boto3.client("s3", endpoint_url=url).create_bucket(Bucket=bucket)
            variables = {
                "STORAGE_ROOT": f"s3://{bucket}/data",
                "MODEL_STORE": "s3",
                "S3_MODEL_BUCKET": bucket,
                "S3_ENDPOINT_URL": url,
                "CHECKPOINT_DIR": f"{folder}/checkpoints",
                "DATASET_SOURCE": "directory",
                "DATASET_DIR": folder,
            }
            job = build_definitions(Environment.read(variables)).resolve_job_def("full_pipeline_job")
            for which in ("first", "second"):
                seconds, requests = run(job, config, count)
                rows.append((number + 1, which, f"{seconds:.2f}", requests, dict(sorted(count.items()))))
    server.stop()
    print_table(["round", "run", "seconds", "requests", "by method"], rows)


if __name__ == "__main__":
    main()
