"""Commands about experiments beside the deployment: make one, promote its candidate, discard it."""

import argparse
import os

from mnist_pipeline.environment import Environment
from mnist_pipeline.experiments.branch import Branch, branch_names, making
from mnist_pipeline.stores import ModelStoreError

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
    """Carry out one of the commands. Raises ModelStoreError, EnvironmentInvalid, OSError or Problem."""
    deployment = Environment.read(os.environ)
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
    from mnist_pipeline.history import begin_history, latest_events

    branch.require_absent()
    print(f"copying values and models to {branch.folder}", flush=True)
    with runs.run_history() as instance:
        known = latest_events(instance)
        with making(branch) as (folder, record):
            begin_history(folder / branch.home.name, known)
            if changed := {key for key, event in latest_events(instance).items() if known.get(key) != event}:
                names = ", ".join(key.to_user_string() for key in changed)
                raise ModelStoreError(f"{names} changed while it was copied: again, when no run is at work")
    name = branch.name
    print(
        f"copied to {name}: {record.bytes / MIB:.1f} MiB in files, models: {len(record.versions)}, last events of "
        f"assets: {len(known)}; automation, alerts and MLflow are off in it\n"
        f"to work in it: make run EXPERIMENT={name}; and so make dev, serve and sweep\n"
        f"its candidate to the gate of the deployment: make promote NAME={name}\n"
        f"to delete it: make discard NAME={name}"
    )


def _promote(branch: Branch, version: str | None) -> None:
    from mnist_pipeline import runs
    from mnist_pipeline.commands.store import lasting_store

    name, manifest = branch.candidate(version)
    if decision := next(branch.store().decisions_about(manifest.name), None):
        print(f"the gate of {branch.name} decided about it: {decision.outcome}: {decision.reason}")
    if new := branch.count_decisions():
        print(f"decisions of {branch.name} by test images, which count for the deployment from now on: {new}")
    runs.run_candidate(manifest.name, {"version": name, "version_store": branch.store().address})
    runs.print_summary(lasting_store())


def _print_all(deployment: Environment) -> None:
    names = branch_names(deployment)
    if not names:
        print("there is no experiment yet: make experiment NAME=x")
    for name in names:
        branch = Branch(deployment, name)
        try:
            record = branch.record()
        except ModelStoreError as error:
            print(f"{name}: {error}")
            continue
        trained = branch.trained()
        last = next(branch.store().decisions_about(trained[0]), None) if trained else None
        decided = f", the last one was {last.outcome} by its gate" if last else ""
        print(f"{name}: made {record.created_at:%Y-%m-%d %H:%M} UTC, versions trained: {len(trained)}{decided}")
