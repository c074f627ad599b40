"""Sweeps by the real daemon and from the command line, killed in the middle."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from mnist_pipeline.experiments.leaderboard import leaderboard
from mnist_pipeline.experiments.sweep import parse_sweep
from mnist_pipeline.experiments.trials import SweepRecord, Sweeps
from mnist_pipeline_tests.amounts import TRIALS
from mnist_pipeline_tests.held import HELD_FROM, HOLD_TRIALS
from mnist_pipeline_tests.live import PROJECT, wait_until
from mnist_pipeline_tests.scenario import Scenario
from mnist_pipeline_tests.task.examples import TINY

pytestmark = pytest.mark.live

EPOCHS = 40
SWEEP: dict[str, Any] = {
    "name": "some",
    "method": "tpe",
    "configurations": TRIALS - 1,  # and the default settings
    "settings": {name: value for name, value in TINY.items() if name != "learning_rate"} | {"epochs": EPOCHS},
    "space": {"learning_rate": {"low": 0.001, "high": 0.03, "log": True}, "conv_dropout": {"low": 0, "high": 0.3}},
}


FORGETFUL = """
import os, signal, sys
from dagster._utils.interrupts import capture_interrupts
from mnist_pipeline import runs
from mnist_pipeline.__main__ import main

execute = runs._execute

def interrupted_at_its_end(instance, job, *rest, **more):
    result = execute(instance, job, *rest, **more)
    if job is runs.trial_job:
        with capture_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
    return result

runs._execute = interrupted_at_its_end
sys.exit(main(sys.argv[1:]))
"""
"""The command, interrupted where Dagster keeps interrupts back and then forgets them: as a run is about to end."""


@pytest.fixture
def scenario(tmp_path):
    scenario = Scenario(tmp_path)
    yield scenario
    scenario.deployment.stop()


def epochs_told(instance: dg.DagsterInstance) -> "Counter[tuple[str, int]]":
    """How often each epoch of each trial was told."""
    told: Counter[tuple[str, int]] = Counter()
    for record in instance.fetch_observations(dg.AssetKey("trial"), limit=1000).records:
        observation = record.event_log_entry.asset_observation
        assert observation and observation.partition
        told[observation.partition, int(str(observation.metadata["epoch"].value))] += 1
    return told


def require_nothing_lost_or_twice(record: SweepRecord, sweeps: Sweeps, told: "Counter[tuple[str, int]]", killed: int):
    """Each trial has one version; each time that one was killed, at most the telling of one epoch went missing."""
    assert record.is_complete
    models = sweeps.models(record.sweep.name)
    manifests = [models.manifest(name) for name in models.versions()]
    assert sorted(str(manifest.training.trial) for manifest in manifests) == [record.name_of(t) for t in record.trials]
    assert all(len(manifest.training.history) == EPOCHS for manifest in manifests)
    assert set(told.values()) == {1}
    everything = {(record.name_of(t), epoch) for t in record.trials for epoch in range(1, EPOCHS + 1)}
    assert everything >= set(told)
    assert len(everything - set(told)) <= killed


@pytest.mark.long
def test_trials_of_the_daemon_outlive_kills(tmp_path, request):
    scenario = Scenario(tmp_path, "mnist_pipeline_tests.held", **{HOLD_TRIALS: str(tmp_path / "hold")})
    deployment, sweeps = scenario.deployment, Sweeps(scenario.store)
    request.addfinalizer(deployment.stop)
    scenario.first_build()
    deployment.instance.event_log_storage.set_concurrency_slots("trials", 2)
    sweeps.begin(parse_sweep(SWEEP, "the test"))

    def at_work() -> set[str]:
        return {run.tags["dagster/partition"] for run in deployment.running() if "dagster/partition" in run.tags}

    def in_the_middle() -> bool:
        told = epochs_told(deployment.instance)
        begun = {trial for trial, _ in told} & at_work()
        return len(begun) == 2 and all(told[t, HELD_FROM] and not told[t, EPOCHS] for t in begun)

    def are_done(count: int) -> bool:
        return sum(trial.is_done for trial in sweeps.read("some").trials) >= count

    for count in (1, 3):
        deployment.wait_for(partial(are_done, count), f"{count} trials", 600)
        (tmp_path / "hold").touch()  # however fast they are
        deployment.wait_for(in_the_middle, "two trials in the middle", 300)
        (tmp_path / "hold").unlink()  # the kill comes at any moment of what they do
        deployment.kill()
        deployment.start()
    deployment.wait_for(lambda: sweeps.read("some").is_complete and not sweeps.open(), "the end of the sweep", 900)
    [ranking] = deployment.wait_for(lambda: deployment.built("leaderboard"), "the leaderboard", 120)
    record = sweeps.read("some")
    assert len(record.trials) == TRIALS
    require_nothing_lost_or_twice(record, sweeps, epochs_told(deployment.instance), killed=4)
    assert ranking["best"] == record.name_of(leaderboard(record).best.best_trial)
    # The main graph has seen nothing of it.
    assert len(scenario.store.versions()) == 1
    assert deployment.is_alive()


def test_a_sweep_from_the_command_line_goes_on_after_a_kill(scenario, tmp_path):
    """Without a daemon; the data is made first."""
    deployment, sweeps = scenario.deployment, Sweeps(scenario.store)
    file = tmp_path / "some.yaml"
    file.write_text(yaml.safe_dump(SWEEP | {"configurations": 5}))

    def start(log: Path) -> "subprocess.Popen[bytes]":
        with log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "mnist_pipeline", "sweep", "--config", str(file)],
                env=deployment.variables,
                cwd=PROJECT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def all_at_once(process: "subprocess.Popen[bytes]") -> None:
        os.killpg(process.pid, signal.SIGKILL)

    def the_command_alone(process: "subprocess.Popen[bytes]") -> None:
        process.kill()

    def ctrl_c(process: "subprocess.Popen[bytes]") -> None:
        os.killpg(process.pid, signal.SIGINT)

    for number, end in enumerate((all_at_once, the_command_alone, ctrl_c, ctrl_c, ctrl_c)):
        log, first = tmp_path / f"log{number}", min(number, 2)
        process = start(log)
        at_work = re.compile(rf"trial some/00[{first}-9]-s0 .*epoch \d+/", re.DOTALL)
        wait_until(lambda log=log, at_work=at_work: at_work.search(log.read_text()), f"a trial from {first} on", 300)
        end(process)
        assert process.wait(timeout=300) == (130 if end is ctrl_c else -signal.SIGKILL), log.read_text()
    process = start(tmp_path / "last")
    assert process.wait(timeout=600) == 0, (tmp_path / "last").read_text()
    said = (tmp_path / "last").read_text()
    assert "some/005-s0 (6 of 6)" in said
    assert "some/000-s0 (" not in said
    assert "send the best to the gate: python -m mnist_pipeline candidate some" in said
    record = sweeps.read("some")
    require_nothing_lost_or_twice(record, sweeps, epochs_told(deployment.instance), killed=5)


def test_ctrl_c_at_the_end_of_a_trial_is_not_forgotten(scenario, tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text(yaml.safe_dump(SWEEP | {"configurations": 1, "settings": SWEEP["settings"] | {"epochs": 1}}))
    command = [sys.executable, "-c", FORGETFUL, "sweep", "--config", str(file)]
    variables = scenario.deployment.variables
    for done in (1, 2):
        ended = subprocess.run(command, env=variables, cwd=PROJECT, capture_output=True, text=True, check=False)
        assert ended.returncode == 130, ended.stderr
        assert "interrupted: the same command goes on where it was" in ended.stderr
        assert sum(trial.is_done for trial in Sweeps(scenario.store).read("some").trials) == done
