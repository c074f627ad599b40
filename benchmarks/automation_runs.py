"""How much automation launches: the project's conditions beside Dagster's `eager()`, in the same scenario.

Real daemon, real code server, small real digits. About 15 minutes:

    .venv/bin/python -m benchmarks.automation_runs
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from operator import sub
from pathlib import Path

from benchmarks.tables import print_table
from mnist_pipeline_tests.live import Count
from mnist_pipeline_tests.scenario import Scenario

MODULES = {"this project": "mnist_pipeline.definitions", "eager()": "benchmarks.eager_definitions"}


def first_build(scenario: Scenario) -> Count:
    """Where nothing begins by itself (`eager()` does not build what was missing from the start), by hand."""
    scenario.deployment.start()
    if scenario.rest().runs == 0:
        print("nothing was launched: raw data is made by hand", file=sys.stderr)
        scenario.deployment.launch("assets", "raw_mnist_data")
    return scenario.rest()


def broken_training(scenario: Scenario) -> Count:
    scenario.checkpoints.rename(scenario.checkpoints.with_name("elsewhere"))
    scenario.checkpoints.write_text("a file where a folder should be")
    scenario.labelled_digits(20)
    return scenario.rest()


def good_change(scenario: Scenario) -> Count:
    scenario.checkpoints.unlink(missing_ok=True)
    scenario.labelled_digits(40)
    return scenario.rest()


EVENTS: dict[str, Callable[[Scenario], Count]] = {
    "first build of six assets": first_build,
    "raw data verified again, unchanged": Scenario.raw_data_again,
    "labelled digits, training broken": broken_training,
    "training mended, more labelled digits": good_change,
}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    table: dict[str, dict[str, Count]] = {event: {} for event in EVENTS}
    for name, module in MODULES.items():
        with tempfile.TemporaryDirectory() as folder:
            scenario = Scenario(Path(folder), module)
            before = Count(0, 0, 0)
            try:
                for event, happen in EVENTS.items():
                    now = happen(scenario)
                    table[event][name] = Count(*map(sub, now, before))
                    before = now
                    print(f"{name}: {event}: {table[event][name]}", file=sys.stderr, flush=True)
            finally:
                scenario.deployment.stop()
    table["together"] = {
        name: Count(*map(sum, zip(*(row[name] for row in table.values()), strict=True))) for name in MODULES
    }
    print_table(
        ["runs, steps, trainings", *MODULES],
        [[event, *(", ".join(map(str, counts[name])) for name in MODULES)] for event, counts in table.items()],
    )


if __name__ == "__main__":
    main()
