"""What each of many processes does with one store at the same time, until it is done or killed."""

import json
import os
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from mnist_pipeline.ml.manifest import PROMOTED, Decision
from mnist_pipeline.ml.records import EpochMetrics
from mnist_pipeline.ml.settings import TrainingSettings
from mnist_pipeline.stores import ModelStore, ModelStoreError
from mnist_pipeline.stores.decisions import new_decision
from mnist_pipeline.stores.overview import overview
from mnist_pipeline_tests.task.examples import SPEC, TINY

KEPT_VERSIONS = 3
METRICS = EpochMetrics(
    epoch=1,
    train_loss=1,
    train_accuracy=0.5,
    validation_loss=1,
    validation_accuracy=0.5,
    learning_rate=0.1,
    seconds=1,
    images_per_second=1,
)
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


class Racer:
    """One of many, with its own dice."""

    def __init__(self, store: ModelStore, seed: int, tell: Callable[[str, str], None]) -> None:
        self.store, self.dice, self.tell, self.seed = store, random.Random(seed), tell, seed
        self.saved = 0

    def save(self) -> Any:
        self.saved += 1
        return self.store.save(
            f"{self.seed} {self.saved}".encode() * 100,
            f"{self.saved} {self.seed}".encode() * 100,
            task=SPEC,
            settings=TrainingSettings(**TINY),
            history=[METRICS],
            best_epoch=1,
            data_version="data",
            code_version="1",
            run_id="run",
        )

    def decide(self, outcome: str) -> None:
        manifest = self.save()
        decision = new_decision(
            outcome=outcome,
            strategy="quality",
            reason="a race",
            version=manifest.name,
            weights_sha256=manifest.weights_sha256,
            incumbent=self.store.state().deployed,
            actor="test",
            test_digest="a" * 64,
            max_regression=0.003,
        )
        if outcome == PROMOTED:
            self.store.promote(decision)
        else:
            self.store.record(decision)
        self.tell(outcome, decision.id)

    def roll_back(self) -> None:
        if not (versions := self.store.versions()):
            return
        self.tell(PROMOTED, self.store.rollback("a race", "test", to=self.dice.choice(versions)).id)

    def look(self) -> None:
        overview(self.store, 5)
        self.store.decisions(limit=20)
        if deployed := self.store.production():
            self.store.verify(deployed.version)  # what is deployed is there, whatever prune does

    def act(self) -> None:
        """Do one thing; errors of the store's own are answers, and all others are told."""
        actions: list[Callable[[], object]] = [
            lambda: self.decide(PROMOTED),
            lambda: self.decide("refused"),
            self.roll_back,
            self.look,
            lambda: self.store.prune(KEPT_VERSIONS),
        ]
        try:
            self.dice.choices(actions, [4, 2, 1, 3, 1])[0]()
        except ModelStoreError:
            pass
        except BaseException:
            self.tell("error", traceback.format_exc())


class Told(NamedTuple):
    """What the racers say they did."""

    promoted: list[str]
    refused: list[str]
    errors: list[str]


def race(store: ModelStore, environment: dict[str, str], seed: int, rounds: int, log: Path) -> None:
    """The work of one process."""
    os.environ.update(environment)
    with log.open("a") as file:

        def tell(kind: str, text: str) -> None:
            file.write(json.dumps([kind, text]) + "\n")
            file.flush()

        racer = Racer(store, seed, tell)
        for _ in range(rounds):
            racer.act()


def told(logs: list[Path]) -> Told:
    """What was written into logs, but for a line that a kill cut off."""
    found: dict[str, list[str]] = {PROMOTED: [], "refused": [], "error": []}
    for log in logs:
        for line in log.read_text().splitlines(keepends=True) if log.exists() else []:
            if line.endswith("\n"):
                kind, text = json.loads(line)
                found[kind].append(text)
    return Told(found[PROMOTED], found["refused"], found["error"])


@contextmanager
def racing(store: ModelStore, processes: int, rounds: int, folder: Path, seed: int = 0) -> Iterator[list[BaseProcess]]:
    """Run racers in processes of their own; those that still run at the end are waited for."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("AWS_", "AZUR", "GOOGLE_")
    environment = {name: value for name, value in os.environ.items() if name.startswith(names)}
    started: list[BaseProcess] = [
        CONTEXT.Process(target=race, args=(store, environment, seed + number, rounds, folder / f"{seed + number}.log"))
        for number in range(processes)
    ]
    for process in started:
        process.start()
    try:
        yield started
        for process in started:
            process.join()
    finally:
        for process in started:
            process.kill()
            process.join()


def check(store: ModelStore, answers: Told, killed: bool = False) -> list[Decision]:
    """Assert that nothing was lost or torn; returns the chain of promotions, newest first."""
    assert answers.errors == []
    trail = store.decisions()
    assert all(isinstance(entry, Decision) for entry in trail)
    chain = [entry for entry in trail if isinstance(entry, Decision) and entry.outcome == PROMOTED]
    assert [entry.sequence for entry in chain] == list(range(len(chain), 0, -1))
    assert [entry.replaces for entry in chain] == [*(entry.id for entry in chain[1:]), None][: len(chain)]
    assert set(answers.promoted) <= {entry.id for entry in chain}
    recorded = {entry.id for entry in trail if isinstance(entry, Decision) and entry.outcome == "refused"}
    assert set(answers.refused) <= recorded
    state = store.state()
    assert state.deployed == (chain[0] if chain else None)
    if not killed:  # who was killed could tell nothing
        assert len(answers.promoted) == len(chain)
        decided = sum(entry.by_evidence for entry in trail if isinstance(entry, Decision))
        # Where the answer to a write was lost, one may be counted twice; none is forgotten.
        assert decided <= state.test_sets.get("a" * 64, 0) <= 1.1 * decided + 1
    for name in store.versions():
        if name not in state.pruning:
            store.verify(name)
    if state.deployed:
        store.verify(state.deployed.version)
    return chain
