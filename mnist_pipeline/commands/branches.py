"""Commands about experiments beside the deployment: make one, promote its candidate, discard it."""

import argparse
import os

from mnist_pipeline.environment import Environment
from mnist_pipeline.experiments.branch import Branch, branch_names, making

MIB = 2**20


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to a parser."""
    experiment = commands.add_parser(
        "experiment", help="copy values and models, to change anything beside the deployment; without a name, list all"
    )
    experiment.add_argument("name", nargs="?", help="small letters, figures, - and _")
    experiment.add_argument("--home", action="store_true", help="only print its DAGSTER_HOME, as make needs it")
    promote = commands.add_parser("promote", help="send the candidate of an experiment to the deployment's gate")
    promote.add_argument("name", help="the experiment")
    promote.add_argument(
        "version",
        nargs="?",
        help="a version there, the beginning of its name, or a trial (default: what its own gate deployed, else the "
        "newest that was trained there)",
    )
    discard = commands.add_parser("discard", help="delete an experiment with all that is in it")
    discard.add_argument("name", help="the experiment")


def carry_out(options: argparse.Namespace) -> None:
    """Carry out one of the commands. Raises ModelStoreError, EnvironmentInvalid, OSError or runs.Problem."""
    variables = dict(os.environ)
    if options.command == "experiment" and options.home:
        variables.pop("EXPERIMENT", None)  # make has set it by then
    deployment = Environment.read(variables)
    if options.name is None:
        _print_all(deployment)
        return
    branch = Branch(deployment, options.name)
    match options.command:
        case "experiment" if options.home:
            branch.record()
            print(branch.home)
        case "experiment":
            _make(branch)
        case "promote":
            _promote(branch, options.version)
        case "discard":
            branch.discard()
            print(f"discarded {branch.name}")


def _make(branch: Branch) -> None:
    from mnist_pipeline import runs
    from mnist_pipeline.history import begin_history

    print(f"copying values and models to {branch.folder}", flush=True)
    with runs.run_history() as instance, making(branch) as (folder, record):
        known = begin_history(instance, folder / branch.home.name)
    name = branch.name
    print(
        f"{name} has {record.files} files of {record.bytes / MIB:.1f} MiB, {len(record.versions)} versions and what is "
        f"known of {known} assets; automation, alerts and MLflow are off in it\n"
        f"to work in it: make run EXPERIMENT={name}; and so make dev, serve and sweep\n"
        f"its candidate to the gate of the deployment: make promote NAME={name}\n"
        f"to delete it: make discard NAME={name}"
    )


def _promote(branch: Branch, version: str | None) -> None:
    from mnist_pipeline import runs
    from mnist_pipeline.commands.store import lasting_store

    name, manifest = branch.candidate(version)
    if new := branch.count_decisions():
        print(f"{branch.name} has decided {new} times by test images, which count for the deployment from now on")
    runs.run_candidate(manifest.name, {"version": name, "version_store": branch.store().address})
    runs.print_summary(lasting_store())


def _print_all(deployment: Environment) -> None:
    names = branch_names(deployment)
    if not names:
        print("there is no experiment yet: make experiment NAME=x")
    for name in names:
        branch = Branch(deployment, name)
        record, deployed = branch.record(), branch.store().production()
        own = deployed and deployed.version not in record.versions
        print(
            f"{name}: made {record.created_at:%Y-%m-%d %H:%M}, {len(branch.trained())} versions trained, "
            f"{f'{deployed.version} deployed there' if deployed and own else 'none of them deployed there'}"
        )
