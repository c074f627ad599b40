"""`python -m scaffold NAME`: write a project like this one, under its own name and for its own data."""

import argparse
import sys
from pathlib import Path

from mnist_pipeline.task.dataset import dataset_names
from scaffold.project import NotMade, Plan, make


def main() -> int:
    """Write the project, and say what comes next."""
    parser = argparse.ArgumentParser(prog="python -m scaffold", description=__doc__)
    parser.add_argument("name", help="what the project is about, in small letters: flowers")
    parser.add_argument("--to", type=Path, help="a folder that is empty or not there yet; default: beside this project")
    parser.add_argument("--dataset", help=f"{', '.join(dataset_names())}; default: mnist")
    parser.add_argument("--dataset-dir", type=Path, help="the folder of its files: of `folder`, a folder a class")
    options = parser.parse_args()
    try:
        plan = Plan.of(options.name, options.to, options.dataset, options.dataset_dir)
        files = make(plan)
    except NotMade as error:
        print(f"not made: {error}", file=sys.stderr)
        return 1
    print(f"{plan.package}: {files} files in {plan.to}\n\n  cd {plan.to}\n  git init --initial-branch main\n  make run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
