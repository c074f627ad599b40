"""`python -m mnist_pipeline`: run everything, experiment, look at the model store, roll back, sum up the last run."""

import argparse
import os
import sys
from collections.abc import Sequence
from multiprocessing import forkserver, get_context
from pathlib import Path

from dotenv import load_dotenv

from mnist_pipeline.commands import branches, experiments, models
from mnist_pipeline.commands.store import lasting_store
from mnist_pipeline.defs.preloaded import DAGSTER, MACHINE_LEARNING, TRAINING
from mnist_pipeline.environment import Environment, EnvironmentInvalid
from mnist_pipeline.experiments.sweep import SweepInvalid
from mnist_pipeline.problem import Problem
from mnist_pipeline.stores import ModelStoreError

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""

RUNNING = ("run", "recover", "summary")
BRANCHING = ("experiment", "promote", "discard")
EXPERIMENTING = ("sweep", "leaderboard", "candidate", "compare", "card", "mlflow", "reproduce")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 refused with a sentence on standard error."""
    options = _parser().parse_args(arguments)
    load_dotenv(Path.cwd() / ".env", override=True)  # as Dagster's own commands do
    try:
        if getattr(options, "home", False):
            os.environ.pop("EXPERIMENT", None)  # make asks for the home of an experiment, and has set it by then
        environment = Environment.read({name: os.environ[name] for name in os.environ if name != "DAGSTER_HOME"})
        if environment.experiment:
            os.environ["DAGSTER_HOME"] = environment.experiment_home
        return _carry_out(options)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it was", file=sys.stderr)
        return INTERRUPTED
    except (ModelStoreError, EnvironmentInvalid, SweepInvalid, Problem, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _carry_out(options: argparse.Namespace) -> int:
    command = options.command
    if command in ("run", "candidate", "promote") or (command == "sweep" and options.config):
        # The steps' server imports on the second core what this process imports, too.
        modules = [*DAGSTER, *MACHINE_LEARNING, *(TRAINING if command == "sweep" else ())]
        get_context("forkserver").set_forkserver_preload(modules)
        forkserver.ensure_running()
    if command in RUNNING:
        _run_command(options)
    elif command in BRANCHING:
        branches.carry_out(options)
    elif command in EXPERIMENTING:
        return experiments.carry_out(lasting_store(), options)
    else:
        models.carry_out(lasting_store(), options)
    return 0


def _run_command(options: argparse.Namespace) -> None:
    from mnist_pipeline import history, runs  # Dagster takes a second, which looking at the store need not take

    config = runs.read_config(options.config) if options.command == "run" and options.config else {}
    if options.command == "recover" and options.lost is not None:
        history.end_lost(options.lost)
    elif options.command in ("run", "recover"):
        history.recover()
    if options.command == "run":
        runs.run(config)
    if options.command in ("run", "summary"):
        runs.print_summary(lasting_store())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mnist_pipeline", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="materialize the whole graph, with no server, and sum up")
    run.add_argument("--config", type=Path, metavar="FILE", help="settings of this run, YAML; see presets/")
    commands.add_parser("summary", help="what the last run used, scored, deployed and predicted")
    recover = commands.add_parser(
        "recover", help="end the runs whose processes are gone from this machine, as the daemon does"
    )
    recover.add_argument("--run", dest="lost", metavar="ID", help="end this one unseen: its machine is gone")
    experiments.add_parsers(commands)
    branches.add_parsers(commands)
    models.add_parsers(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
