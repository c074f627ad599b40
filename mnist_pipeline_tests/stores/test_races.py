"""Many processes at one store, and kills in the middle: nothing is lost, nothing is torn."""

import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from mnist_pipeline.stores import LocalModelStore
from mnist_pipeline.stores.versions import MANIFEST
from mnist_pipeline_tests.amounts import KILLS, RACE_ROUNDS
from mnist_pipeline_tests.live import wait_until
from mnist_pipeline_tests.stores.conftest import KINDS, make_store
from mnist_pipeline_tests.stores.racing import Racer, Told, check, racing, told

PROCESSES = 8
QUICKER = {"local": 10, "google": 6}
"""How much more often those are tried whose servers answer sooner."""

pytestmark = [pytest.mark.live, pytest.mark.long]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "memory"])
def test_many_processes_promote_roll_back_save_prune_and_list(kind, request, tmp_path):
    store = make_store(kind, request)
    with racing(store, PROCESSES, RACE_ROUNDS * QUICKER.get(kind, 1), tmp_path / "logs"):
        pass
    chain = check(store, told(list((tmp_path / "logs").iterdir())))
    assert len(chain) > 1  # how many win is the machine's affair


def test_many_threads_do_the_same_in_memory(request):
    store = make_store("memory", request)
    answers = Told([], [], [])
    kinds = {"promoted": answers.promoted, "refused": answers.refused, "error": answers.errors}
    racers = [Racer(store, seed, lambda kind, text: kinds[kind].append(text)) for seed in range(PROCESSES)]
    with ThreadPoolExecutor(PROCESSES) as threads:
        list(threads.map(lambda racer: [racer.act() for _ in range(3 * RACE_ROUNDS)], racers))
    assert len(check(store, answers)) > 1


@pytest.mark.parametrize("kind", ["local", "s3", "azure", "google"])
def test_killed_processes_leave_nothing_torn(kind, request, tmp_path):
    """kill -9 at any moment of a save, a promotion or a prune; what it left is collected."""
    store, chance = make_store(kind, request), random.Random(0)
    logs, kills = tmp_path / "logs", KILLS if kind == "local" else max(1, KILLS // 10)
    killed = 0
    while killed < kills:
        with racing(store, 4, 1000, logs, seed=killed * 4) as processes:
            written = [logs / f"{killed * 4 + number}.log" for number in range(4)]
            acted = chance.randrange(1, 4)  # each is killed somewhere after so many lines, not after so long
            wait_until(lambda: sum(_lines(log) for log in written) >= acted, "the processes to act", 60, 0.002)  # noqa: B023
            for process in processes:
                time.sleep(chance.uniform(0, 0.02))  # somewhere in what each does next
                assert process.pid
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
        answers = told(written)
        assert answers.errors == []
        if state := store.state().deployed:
            store.verify(state.version)
    check(store, told(list(logs.iterdir())), killed=True)
    store.prune(keep=3, orphans_older_than=timedelta(0))
    assert store.state().pruning == ()
    assert all(MANIFEST in files for files in store.version_files().values())
    if isinstance(store, LocalModelStore):
        assert list(Path(store.base_path).rglob(".tmp-*")) == []
    check(store, told(list(logs.iterdir())), killed=True)


def _lines(log: Path) -> int:
    return log.read_text().count("\n") if log.exists() else 0
