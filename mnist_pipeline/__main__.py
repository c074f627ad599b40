"""`python -m mnist_pipeline`: run everything, look at the model store, roll back, sum up the last run."""

import argparse
import getpass
import json
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing import forkserver, get_context
from pathlib import Path

from dotenv import load_dotenv

from mnist_pipeline.defs.preloaded import DAGSTER, MACHINE_LEARNING
from mnist_pipeline.environment import Environment, EnvironmentInvalid
from mnist_pipeline.stores import MemoryModelStore, ModelStore, ModelStoreError, store_at, store_from_environment
from mnist_pipeline.stores.base import ORPHANS_OLDER_THAN
from mnist_pipeline.stores.copying import copy
from mnist_pipeline.stores.overview import Overview, Row, overview
from mnist_pipeline.stores.trail import Damaged, Entry

FOLLOWS = (
    "a running daemon (make dev) records it in Dagster, predicts with it and tells people; "
    "without one: .venv/bin/dg launch --job inference_job, with DAGSTER_HOME set as for make"
)
"""Words after a deployment by command."""

LISTED_VERSIONS = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 refused with a sentence on standard error."""
    options = _parser().parse_args(arguments)
    load_dotenv(Path.cwd() / ".env", override=True)  # as Dagster's own commands do
    try:
        if options.command in ("run", "recover", "summary"):
            return _run_command(options)
        _store_command(_lasting_store(), options)
    except (ModelStoreError, EnvironmentInvalid, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run_command(options: argparse.Namespace) -> int:
    if options.command == "run":
        # The steps' server imports on the second core what this process imports, too.
        get_context("forkserver").set_forkserver_preload([*DAGSTER, *MACHINE_LEARNING])
        forkserver.ensure_running()
    from mnist_pipeline import runs  # Dagster takes a second, which looking at the store need not take

    try:
        config = runs.read_config(options.config) if options.command == "run" and options.config else {}
        if options.command in ("run", "recover"):
            runs.recover()
        if options.command == "run":
            runs.run(config)
        if options.command in ("run", "summary"):
            runs.print_summary(_lasting_store())
    except runs.Problem as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mnist_pipeline", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="materialize the whole graph, with no server, and sum up")
    run.add_argument("--config", type=Path, metavar="FILE", help="settings of this run, YAML; see presets/")
    commands.add_parser("summary", help="what the last run used, scored, deployed and predicted")
    commands.add_parser("recover", help="end the runs whose processes are gone from this machine, as the daemon does")
    models = commands.add_parser("models", help="all model versions, newest first: data, scores, decisions, state")
    models.add_argument("--json", action="store_true", help="for machines")
    models.add_argument("--limit", type=_positive, help="how many of the newest (default: 20, with --json all)")
    show = commands.add_parser("show", help="all that was recorded about a version")
    show.add_argument("version", help="its name, as `models` lists it, or the beginning of it")
    commands.add_parser("production", help="what is deployed, and why")
    decisions = commands.add_parser("decisions", help="the audit trail, newest first")
    decisions.add_argument("--limit", type=_positive, help="how many of the newest (default: all)")
    rollback = commands.add_parser("rollback", help="deploy an earlier version again")
    rollback.add_argument("--reason", required=True, help="for the audit trail")
    rollback.add_argument("--to", help="version to deploy, or the beginning of its name; by default the one before")
    approve = commands.add_parser("approve", help="deploy the candidate that waits for approval")
    approve.add_argument("version", help="its name, or the beginning of it")
    approve.add_argument("--reason", required=True, help="for the audit trail")
    for command in (rollback, approve):
        command.add_argument("--actor", help="who decides (default: the user)")
    prune = commands.add_parser(
        "prune", help="delete old versions, but what is deployed, what it replaced, the reference, and what waits"
    )
    prune.add_argument("--keep", type=_positive, required=True, help="how many of the newest versions stay")
    prune.add_argument(
        "--orphans-older-than",
        type=_days,
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
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= sys.maxsize:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _days(text: str) -> timedelta:
    try:
        days = timedelta(days=float(text))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"must be a number of days, not {text!r}") from None
    if days < timedelta(0):
        raise argparse.ArgumentTypeError(f"must not be negative, but is {text!r}")
    return days


def _store_command(store: ModelStore, options: argparse.Namespace) -> None:
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
            for entry in store.decisions(options.limit):
                print(_line(entry))
        case "rollback":
            decision = store.rollback(options.reason, options.actor or _user(), options.to)
            print(f"deployed {decision.version} in place of {decision.incumbent_version}\n{FOLLOWS}")
        case "approve":
            decision = store.approve(options.version, options.reason, options.actor or _user())
            print(f"deployed {decision.version} in place of {decision.incumbent_version or 'nothing'}\n{FOLLOWS}")
        case "prune":
            pruned = store.prune(options.keep, options.orphans_older_than)
            lines = [f"deleted {name}" for name in pruned.versions]
            lines += [f"deleted {name}, which was never finished" for name in pruned.orphans]
            print("\n".join(lines) or "there is nothing to delete")
        case "export":
            manifest, onnx = store.load_onnx(store.resolve(options.version))
            print(f"{manifest.name} has its model.onnx, {len(onnx):,} bytes, SHA-256 {manifest.onnx_sha256}")
        case "copy":
            _copy(store, options.address, options.s3_endpoint_url or Environment.read(os.environ).s3_endpoint_url)


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
    _require_lasting(target)
    done = copy(store, target, lambda name: print(f"copying {name}", flush=True))
    print(
        f"{len(done.versions)} versions and {done.decisions} decisions copied to {target.address}, {len(done.present)} "
        f"versions were there; to use it: MODEL_STORE={target.address}"
    )
    for name, why in done.damaged.items():
        print(f"left out: {name}: {why}")


def _lasting_store() -> ModelStore:
    store = store_from_environment(Environment.read(os.environ))
    _require_lasting(store)
    return store


def _require_lasting(store: ModelStore) -> None:
    if isinstance(store, MemoryModelStore):
        raise ModelStoreError(f"{store.address} lives in the memory of one process, and no other can look at it")


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


if __name__ == "__main__":
    sys.exit(main())
