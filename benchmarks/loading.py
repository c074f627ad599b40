"""Loading the code location, beside `import dagster` alone.

    .venv/bin/python -m benchmarks.loading

The two in turn, each time in a new interpreter.
"""

import argparse
import statistics
import subprocess
import sys
import time

from benchmarks.mnist import PROJECT
from benchmarks.tables import print_table

STATEMENTS = {"import dagster": "import dagster", "the code location": "import mnist_pipeline.definitions"}


def seconds(statement: str) -> float:
    """Of a new interpreter that executes the statement and ends."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", "-c", statement], cwd=PROJECT, check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    rounds = [{name: seconds(statement) for name, statement in STATEMENTS.items()} for _ in range(arguments.rounds)]
    medians = {name: statistics.median(one[name] for one in rounds) for name in STATEMENTS}
    base = medians["import dagster"]
    print_table(
        ["a new process, median of rounds", "seconds", "ratio"],
        [[name, f"{median:.2f}", f"{median / base:.2f}"] for name, median in medians.items()],
    )


if __name__ == "__main__":
    main()
