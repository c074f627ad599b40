"""Commands about the model store: what there is, what was decided, and deployments by hand."""

import argparse
import getpass
import json
import os
import sys
from datetime import timedelta

from mnist_pipeline.commands.arguments import days, positive
from mnist_pipeline.commands.store import require_lasting
from mnist_pipeline.environment import Environment, EnvironmentInvalid
from mnist_pipeline.experiments.trials import Sweeps
from mnist_pipeline.stores import ModelStore, ModelStoreError, store_at
from mnist_pipeline.stores.base import ORPHANS_OLDER_THAN
from mnist_pipeline.stores.copying import copy
from mnist_pipeline.stores.overview import Overview, Row, overview
from mnist_pipeline.stores.trail import Damaged, Entry

FOLLOWS = (
    "a running daemon (make dev) records it in Dagster, predicts with it and tells people; "
    "without one: .venv/bin/dg launch --job inference_job, with DAGSTER_HOME set as for make"
)
"""Words after a deployment by command."""

LISTED_VERSIONS = LISTED_DECISIONS = 20

ALL_SWEEPS = "*"


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to a parser."""
    models = commands.add_parser("models", help="all model versions, newest first: data, scores, decisions, state")
    models.add_argument("--json", action="store_true", help="for machines")
    models.add_argument("--limit", type=positive, help="how many of the newest (default: 20, with --json all)")
    show = commands.add_parser("show", help="all that was recorded about a version")
    show.add_argument("version", help="its name, as `models` lists it, or the beginning of it")
    commands.add_parser("production", help="what is deployed, and why")
    decisions = commands.add_parser("decisions", help="the audit trail, newest first")
    decisions.add_argument(
        "--limit", type=positive, default=LISTED_DECISIONS, help="how many of the newest (default: 20)"
    )
    rollback = commands.add_parser("rollback", help="deploy an earlier version again")
    rollback.add_argument("--reason", required=True, help="for the audit trail")
    rollback.add_argument("--to", help="version to deploy, or the beginning of its name; by default the one before")
    approve = commands.add_parser("approve", help="deploy the candidate that waits for approval")
    approve.add_argument("version", help="its name, or the beginning of it")
    approve.add_argument("--reason", required=True, help="for the audit trail")
    for command in (rollback, approve):
        command.add_argument("--actor", help="who decides (default: the user)")
    prune = commands.add_parser(
        "prune",
        help="delete old versions, but what is deployed, what it replaced, the reference, and what waits; or old "
        "sweeps, or old runs",
    )
    what = prune.add_mutually_exclusive_group(required=True)
    what.add_argument("--keep", type=positive, help="how many of the newest versions stay")
    what.add_argument(
        "--experiments",
        nargs="?",
        const=ALL_SWEEPS,
        metavar="SWEEP",
        help="delete that sweep with its versions, or all sweeps that have no trials left to do",
    )
    what.add_argument(
        "--runs",
        type=days,
        metavar="DAYS",
        help="delete finished runs of so many days ago, with their events, from the run history; the last events of "
        "each asset stay",
    )
    prune.add_argument(
        "--orphans-older-than",
        type=days,
        default=ORPHANS_OLDER_THAN,
        metavar="DAYS",
        help="also delete what killed saves left more than so many days ago (default: 1; with less, a save that is "
        "under way may be taken for a killed one)",
    )
    export = commands.add_parser("export", help="make model.onnx of a version that was saved before there was one")
    export.add_argument("version", help="its name, or the beginning of it")
    copying = commands.add_parser("copy", help="copy the whole store to another address; again: what is new")
    copying.add_argument("address", help="folder, or s3://, gs:// or az:// with bucket and prefix")
    copying.add_argument("--s3-endpoint-url", metavar="URL", help="of the target (default: S3_ENDPOINT_URL)")


def carry_out(store: ModelStore, options: argparse.Namespace) -> None:
    """Carry out one of the commands. Raises ModelStoreError, EnvironmentInvalid or OSError."""
    match options.command:
        case "models":
            limit = options.limit or (None if options.json else LISTED_VERSIONS)
            _print_models(overview(store, limit), as_json=options.json)
        case "show":
            print(
                store.manifest(store.resolve(options.version)).model_dump_json(
                    indent=2, exclude={"training": {"drift_reference", "coverage"}}
                )
            )
        case "production":
            current = store.production()
            print(current.model_dump_json(indent=2) if current else "nothing is deployed")
        case "decisions":
            entries = store.decisions(options.limit)
            for entry in entries:
                print(_line(entry))
            if len(entries) == options.limit:
                print(f"the newest {options.limit}; more with --limit", file=sys.stderr)
        case "rollback":
            decision = store.rollback(options.reason, options.actor or _user(), options.to)
            print(f"deployed {decision.version} in place of {decision.incumbent_version}\n{FOLLOWS}")
            _tell_mlflow(store)
        case "approve":
            decision = store.approve(options.version, options.reason, options.actor or _user())
            print(f"deployed {decision.version} in place of {decision.incumbent_version or 'nothing'}\n{FOLLOWS}")
            _tell_mlflow(store)
        case "prune":
            _prune(store, options)
        case "export":
            manifest, onnx = store.load_onnx(store.resolve(options.version))
            print(f"{manifest.name} has its model.onnx, {len(onnx):,} bytes, SHA-256 {manifest.onnx_sha256}")
        case "copy":
            _copy(store, options.address, options.s3_endpoint_url or Environment.read(os.environ).s3_endpoint_url)


def _tell_mlflow(store: ModelStore) -> None:
    """Move MLflow's alias, if there is one; the deployment stands whatever comes of it."""
    from mnist_pipeline.experiments.mlflow_mirror import mirror_of

    try:
        if mirror := mirror_of(Environment.read(os.environ), lambda problem: print(problem, file=sys.stderr)):
            mirror.pointer(store)
    except (ModelStoreError, EnvironmentInvalid, OSError, ValueError) as error:
        print(f"MLflow was not told: {error}", file=sys.stderr)


def _prune(store: ModelStore, options: argparse.Namespace) -> None:
    if options.experiments is not None:
        _prune_experiments(Sweeps(store), options.experiments)
    elif options.runs is not None:
        _prune_runs(options.runs)
    else:
        pruned = store.prune(options.keep, options.orphans_older_than)
        lines = [f"deleted {name}" for name in pruned.versions]
        lines += [f"deleted {name}, which was never finished" for name in pruned.orphans]
        lines += [f"deleted the images {digest}, which no version needs" for digest in pruned.data]
        print("\n".join(lines) or "there is nothing to delete")


def _prune_experiments(sweeps: Sweeps, name: str) -> None:
    chosen = sweeps.names() if name == ALL_SWEEPS else [name]
    if name != ALL_SWEEPS and name not in sweeps.names() and not sweeps.has_left(name):
        sweeps.read(name)  # says which there are
    if not chosen:
        print("there is nothing to delete")
    for sweep in chosen:
        versions = len(sweeps.models(sweep).versions())
        try:
            sweeps.delete(sweep)
        except ModelStoreError as error:
            if name != ALL_SWEEPS:
                raise
            print(f"{sweep} stays: {error}")
            continue
        print(f"deleted the sweep {sweep} with {versions} versions")


def _prune_runs(older_than: timedelta) -> None:
    from mnist_pipeline.history import prune_runs, run_history

    with run_history() as instance:
        deleted = 0
        for run_id in prune_runs(instance, older_than):
            print(f"deleted the run {run_id}", flush=True)
            deleted += 1
        print(f"{deleted} runs deleted" if deleted else "there is nothing to delete")


def _line(entry: Entry) -> str:
    if isinstance(entry, Damaged):
        return f"damaged: {entry.key}: {entry.problem}"
    return (
        f"{entry.decided_at:%Y-%m-%d %H:%M:%S} {entry.outcome:9} {entry.strategy:8} {entry.version} "
        f"by {entry.actor}: {entry.reason}"
    )


def _copy(store: ModelStore, address: str, endpoint_url: str | None) -> None:
    try:
        target = store_at(address, endpoint_url)
    except ValueError as error:
        raise ModelStoreError(str(error)) from None
    require_lasting(target)
    done = copy(store, target, lambda name: print(f"copying {name}", flush=True))
    print(
        f"{len(done.versions)} versions and {done.decisions} decisions copied to {target.address}, {len(done.present)} "
        f"versions were there; to use it: MODEL_STORE={target.address}"
    )
    for name, why in done.damaged.items():
        print(f"left out: {name}: {why}")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        raise ModelStoreError("this user has no name: say with --actor who decides") from None


def _print_models(found: Overview, *, as_json: bool) -> None:
    rows = found.rows
    if as_json:
        print(json.dumps([row._asdict() for row in rows], indent=2))
    elif not rows:
        print("the store has no version yet")
    else:
        cells = [tuple(name.replace("_", " ") for name in Row._fields)]
        cells += [tuple(f"{v:.4f}" if isinstance(v, float) else str(v or "") for v in row) for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for line in cells:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if len(rows) < found.versions:
            print(f"{len(rows)} of {found.versions} versions; more with --limit")
