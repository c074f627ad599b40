"""How cost grows with the training images: time and peak memory of each asset, one epoch of training.

    .venv/bin/python -m benchmarks.scaling

Beyond 60,000 the training images are copies, shifted by a pixel or two. Each asset is a process of its own that has
imported the libraries before the time begins, as under `full_pipeline_job`; they are most of the memory.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.mnist import add_data_option, resized
from benchmarks.processes import Cost, measure
from benchmarks.steps import environment, materialize
from benchmarks.tables import print_table
from mnist_pipeline.task.known import known
from mnist_pipeline.task.sources import load_directory


def main() -> None:
    from mnist_pipeline_tests.live import CHAIN  # not in the processes that are measured
    from mnist_pipeline_tests.task.examples import write_files

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 15_000, 60_000, 240_000])
    arguments = parser.parse_args()
    dataset = load_directory(arguments.data, known("mnist"))
    costs: dict[str, list[Cost]] = {asset: [] for asset in CHAIN}
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as name:
            home, data = Path(name) / "home", Path(name) / "mnist"
            home.mkdir()
            data.mkdir()
            write_files(data, resized(dataset, size))
            for asset in CHAIN:
                costs[asset].append(measure(materialize, asset, environment(home, data), True))
    print_table(
        ["seconds, peak MiB", *(f"{size:,} images" for size in arguments.sizes)],
        [[asset, *(f"{c.result:.1f}, {c.peak_mib:.0f}" for c in of_sizes)] for asset, of_sizes in costs.items()],
    )


if __name__ == "__main__":
    main()
