"""How cost grows with the training images: time and peak memory of each asset, one epoch of training.

    .venv/bin/python -m benchmarks.scaling

Beyond 60,000 the training images are copies, shifted by a pixel or two. Each asset is a process of its own.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.mnist import add_data_option, resized
from benchmarks.processes import Cost, measure
from benchmarks.tables import print_table
from mnist_pipeline.ml.sources import load_directory

CONFIG = {"digit_classifier": {"epochs": 1}, "production_digit_classifier": {"accuracy_threshold": 0.1}}


def materialize(asset: str, variables: dict[str, str]) -> None:
    """One asset with its checks, as its step does it."""
    import dagster as dg

    from mnist_pipeline.definitions import build_definitions
    from mnist_pipeline.environment import Environment

    job = build_definitions(Environment.read(variables)).resolve_job_def("full_pipeline_job")
    with dg.DagsterInstance.from_config(variables["DAGSTER_HOME"]) as instance:
        job.execute_in_process(
            run_config={"ops": {asset: {"config": CONFIG[asset]}} if asset in CONFIG else {}},
            asset_selection=[dg.AssetKey(asset)],
            instance=instance,
        )


def main() -> None:
    from mnist_pipeline_tests.conftest import CHAIN, write_idx

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 15_000, 60_000, 240_000])
    arguments = parser.parse_args()
    dataset = load_directory(arguments.data)
    costs: dict[str, list[Cost]] = {asset: [] for asset in CHAIN}
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as name:
            folders = [Path(name) / part for part in ("home", "mnist")]
            for folder in folders:
                folder.mkdir()
            write_idx(folders[1], resized(dataset, size))
            variables = {
                "DAGSTER_HOME": str(folders[0]),
                "STORAGE_ROOT": f"{name}/storage",
                "MNIST_SOURCE": "directory",
                "MNIST_DIR": str(folders[1]),
            }
            for asset in CHAIN:
                costs[asset].append(measure(materialize, asset, variables))
    print_table(
        ["seconds, peak MiB", *(f"{size:,} images" for size in arguments.sizes)],
        [[asset, *(f"{c.seconds:.1f}, {c.peak_mib:.0f}" for c in of_sizes)] for asset, of_sizes in costs.items()],
    )


if __name__ == "__main__":
    main()
