"""Commands about experiments: sweeps, their leaderboard, one of them to the gate, a training once more."""

import argparse
import json
import os
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mnist_pipeline.commands.arguments import positive
from mnist_pipeline.environment import Environment, EnvironmentInvalid
from mnist_pipeline.experiments.naming import best_trial, find_version
from mnist_pipeline.experiments.sweep import read_sweep
from mnist_pipeline.experiments.trials import SweepRecord, Sweeps
from mnist_pipeline.files.atomic import write_bytes
from mnist_pipeline.ml.errors import ModelError
from mnist_pipeline.stores import ModelStore, ModelStoreError
from mnist_pipeline.stores.versions import CARD, COMPARED

LISTED_CONFIGURATIONS = 20


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to a parser."""
    sweep = commands.add_parser(
        "sweep", help="try settings: start a sweep, or go on with one; without options, list all sweeps"
    )
    what = sweep.add_mutually_exclusive_group()
    what.add_argument("--config", type=Path, metavar="FILE", help="the sweep, YAML; see sweeps/")
    what.add_argument("--stop", metavar="NAME", help="begin no more trials of a sweep; --config goes on with it")
    board = commands.add_parser("leaderboard", help="the configurations of a sweep, the best first, on validation")
    board.add_argument("sweep", nargs="?", help="its name (default: the one that was started last)")
    board.add_argument("--limit", type=positive, default=LISTED_CONFIGURATIONS, help="how many (default: 20)")
    board.add_argument("--json", action="store_true", help="all, for machines")
    board.add_argument("--settings", action="store_true", help="the settings of the best one, for PIPELINE_CONFIG")
    candidate = commands.add_parser(
        "candidate", help="send the best trial of a sweep, or any trial, to evaluation and gate"
    )
    candidate.add_argument("trial", nargs="?", default="newest", help="a sweep or a trial (default: the newest sweep)")
    compare = commands.add_parser("compare", help="two versions beside each other, as a table and a page")
    for which in ("first", "second"):
        compare.add_argument(which, help="a version, the beginning of its name, a trial, or `deployed`")
    compare.add_argument("--page", type=Path, metavar="FILE", help="also write the page, HTML that stands by itself")
    card = commands.add_parser("card", help="make the card of a version again, beside it in the store")
    card.add_argument("version", help="its name, the beginning of it, or `deployed`")
    commands.add_parser("mlflow", help="tell MLFLOW_TRACKING_URI of all versions that it does not know yet")
    again = commands.add_parser(
        "reproduce", help="train a version again, and tell if the weights are the same, and if not, what differs"
    )
    again.add_argument("version", help="its name, the beginning of it, or a trial, such as learning_rate/007-s0")
    again.add_argument("--threads", type=positive, help="threads of the training (default: as many as then)")


def carry_out(store: ModelStore, options: argparse.Namespace) -> int:
    """Carry out one of the commands, and return the exit status.

    Raises ModelStoreError, SweepInvalid, EnvironmentInvalid or OSError.
    """
    match options.command:
        case "sweep" if options.config:
            from mnist_pipeline import runs

            sweep = read_sweep(options.config)
            runs.run_sweep(sweep, Sweeps(store))
            print_leaderboard(store, sweep.name)
        case "sweep" if options.stop is not None:
            sweeps = Sweeps(store)
            is_complete = sweeps.read(options.stop).is_complete
            sweeps.close(options.stop)
            begun = (
                "all its trials are done" if is_complete else "no more trials begin; those at work go on to their end"
            )
            print(f"{options.stop}: {begun}")
        case "sweep":
            print_sweeps(Sweeps(store))
        case "leaderboard":
            print_leaderboard(store, options.sweep, options.limit, options.json, options.settings)
        case "candidate":
            from mnist_pipeline import runs

            record, trial = best_trial(Sweeps(store), options.trial)
            name = record.name_of(trial)
            runs.run_candidate(name, {"trial": name})
            runs.print_summary(store)
        case "compare":
            _compare(store, options.first, options.second, options.page)
        case "card":
            from mnist_pipeline.experiments.card import keep_card

            found = find_version(store, options.version)
            keep_card(found.store, found.manifest.name)
            print(f"{found.store.address}/{found.manifest.name}/{CARD}")
        case "mlflow":
            return _tell_mlflow(store)
        case "reproduce":
            return _reproduce(store, options.version, options.threads)
    return 0


def _tell_mlflow(store: ModelStore) -> int:
    from mnist_pipeline.experiments.mlflow_mirror import mirror_of

    environment = Environment.read(os.environ)
    if environment.experiment:
        raise EnvironmentInvalid(f"EXPERIMENT={environment.experiment}: MLflow is not told of experiments")
    # Of years of history there is much to tell, and whoever waits can interrupt.
    mirror = mirror_of(environment, lambda problem: print(problem, file=sys.stderr), threading.TIMEOUT_MAX)
    if mirror is None:
        raise EnvironmentInvalid("MLFLOW_TRACKING_URI: there is none, and nobody to tell")
    sweeps, told = Sweeps(store), set[str]()
    for models, registered in [(store, True), *((sweeps.models(name), False) for name in sweeps.names())]:
        for name in reversed(models.versions()):
            if name in told:  # a trial that became a candidate
                continue
            try:
                page = mirror.version(models, name, registered)
            except ModelStoreError as error:
                print(f"left out: {name}: {error}")
                continue
            if page is None:
                return 1
            print(f"{name}: {page}", flush=True)
            told.add(name)
    mirror.pointer(store)
    print(f"{mirror.uri} knows of {len(told)} versions, and of what is deployed")
    return 1 if mirror.problem else 0


def print_sweeps(sweeps: Sweeps) -> None:
    """Print a line for each sweep, the one that was started last first."""
    opened = sweeps.open()
    rows = [("sweep", "started", "method", "trials done", "failed", "state")]
    for name in sweeps.names():
        try:
            record = sweeps.read(name)
        except ModelStoreError as error:  # damaged, or being deleted
            rows.append((name, "", "", "", "", str(error).partition("\n")[0]))
            continue
        state = "complete" if record.is_complete else "open" if name in opened else "stopped"
        rows.append((name, f"{record.started_at:%Y-%m-%d %H:%M}", record.sweep.method, *_progress(record), state))
    print("\n".join(_aligned(rows)) if len(rows) > 1 else "there is no sweep yet: make sweep CONFIG=sweeps/...")


def print_leaderboard(
    store: ModelStore,
    name: str | None,
    limit: int = LISTED_CONFIGURATIONS,
    as_json: bool = False,
    settings: bool = False,
) -> None:
    """Print the leaderboard of a sweep. Raises ModelStoreError if it has none."""
    from mnist_pipeline.experiments.leaderboard import as_config, leaderboard, table_rows

    sweeps = Sweeps(store)
    board = leaderboard(sweeps.read(sweeps.newest() if name is None else name))
    rows, sweep = table_rows(board), board.record.sweep
    if settings:
        import yaml

        print(yaml.safe_dump(as_config(board, board.best), sort_keys=False), end="")
        return
    if as_json:
        print(json.dumps({"sweep": sweep.name, "rows": rows, "importance": board.importance}, indent=2))
        return
    print(f"{sweep.name}: {sweep.metric.replace('_', ' ')}, mean of {len(sweep.seeds)} seeds")
    print("\n".join(_aligned([[name.replace("_", " ") for name in rows[0]], *map(_cells, rows[:limit])])))
    for trial, why in board.failed.items():
        print(f"failed: {trial}: {why}")
    if board.open:
        print(f"{board.open} trials are not done yet")
    if board.importance:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in board.importance.items())
        print(f"importance: {shares}")
    print(f"send the best to the gate: python -m mnist_pipeline candidate {sweep.name}")


def _compare(store: ModelStore, first: str, second: str, page: Path | None) -> None:
    from mnist_pipeline.experiments import comparing

    try:
        found = comparing.compare_versions(store, first, second)
    except ModelError as error:
        raise ModelStoreError(str(error)) from error
    print(f"first:  {found.first.manifest.name}\nsecond: {found.second.manifest.name}")
    if found.remark:
        print(f"beware: {found.remark}")
    for rows in (comparing.score_rows(found), comparing.settings_rows(found), comparing.paired_rows(found)):
        print(*(["", *_aligned([[*rows[0]], *map(_cells, rows)])] if rows else ["", "no setting differs"]), sep="\n")
    content = comparing.comparison_page(found)
    key = f"{found.first.manifest.name}/{COMPARED}{found.second.manifest.name}.html"
    found.first.store.put(key, content)
    print(f"\nthe page: {found.first.store.address}/{key}")
    if page:
        write_bytes(page, content)
        print(f"and:      {page}")


def _reproduce(store: ModelStore, name: str, threads: int | None) -> int:
    from mnist_pipeline.experiments.reproducing import reproduce

    manifest = find_version(store, name).manifest
    kept = sum(record.images or 0 for record in manifest.training.splits.values())
    print(f"training {manifest.name} again, on {kept:,} images that were kept", flush=True)
    epochs = manifest.training.settings.get("epochs")
    try:
        found = reproduce(
            store,
            manifest,
            lambda epoch: print(
                f"epoch {epoch.epoch}/{epochs}: validation accuracy {epoch.validation_accuracy:.4f}", flush=True
            ),
            threads,
        )
    except (ValueError, ArithmeticError, RuntimeError) as error:
        raise ModelStoreError(f"{manifest.name} cannot be trained here: {error}") from error
    print(f"then: {found.expected}\nnow:  {found.found}")
    print("the weights are the same" if found.is_same else "the weights differ")
    for kind, words in found.differing.items():
        print(f"{kind}: {'; '.join(words)}")
    if not found.is_same and not found.differing:
        print("commit, packages, hardware and data are the same as then", file=sys.stderr)
    return 0 if found.is_same else 1


def _progress(record: SweepRecord) -> tuple[str, str]:
    done = sum(trial.version is not None for trial in record.trials)
    failed = sum(trial.is_done for trial in record.trials) - done
    return f"{done} of {len(record.trials)}{'' if record.exhausted else ' so far'}", str(failed)


def _cells(row: dict[str, Any]) -> list[str]:
    return [f"{v:.4f}" if isinstance(v, float) else "" if v is None else str(v) for v in row.values()]


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """The rows as lines of columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
