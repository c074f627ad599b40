"""The real daemon and code server: what automation does, and does not do, while things happen around it."""

import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mnist_pipeline.definitions import defs
from mnist_pipeline.ml.manifest import Decision
from mnist_pipeline_tests.defs.slack_stub import TOKEN, slack_stub
from mnist_pipeline_tests.held import HELD_FROM, HOLD_TRAINING
from mnist_pipeline_tests.live import CHAIN, PROJECT, Count, wait_until
from mnist_pipeline_tests.postgres import PASSWORD, Postgres, postgres
from mnist_pipeline_tests.scenario import Scenario

pytestmark = pytest.mark.live


@pytest.fixture
def stub():
    with slack_stub() as server:
        yield server


@pytest.fixture
def database(request, monkeypatch) -> Iterator[dict[str, Any]]:
    """What a scenario takes to keep its history in: nothing for SQLite, or a server of Postgres."""
    if request.param == "sqlite":
        yield {}
        return
    with postgres() as server:
        if isinstance(server, str):
            pytest.skip(server)
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)  # the test looks at the history, too
        yield {"instance": PROJECT / "deploy/dagster.postgres.yaml", **server.variables, "server": server}


@pytest.fixture
def server(database) -> Postgres:
    return database["server"]


@pytest.fixture
def scenario(tmp_path, stub, database):
    database = {name: value for name, value in database.items() if name != "server"}
    slack = {"SLACK_BOT_TOKEN": TOKEN, "SLACK_CHANNEL": "#ml", "SLACK_API_URL": stub.url}
    scenario = Scenario(
        tmp_path,
        "mnist_pipeline_tests.held",
        **database,
        **slack,
        HOLD_TRAINING=tmp_path / "hold",
        DAGSTER_WEBSERVER_URL="http://ui",
    )
    yield scenario
    scenario.deployment.stop()


def require_each_decided_once(scenario: Scenario, count: int) -> None:
    """Each version was decided about once, and what is deployed has predicted."""
    decisions, deployed = scenario.store.decisions(), scenario.store.production()
    decided = {decision.version for decision in decisions if isinstance(decision, Decision)}
    assert len(decided) == len(decisions) == count
    assert deployed and scenario.deployment.built("batch_digit_predictions")[-1]["model"] == deployed.version


def versions(scenario: Scenario) -> dict[str, int]:
    return {asset: len(scenario.deployment.built(asset)) for asset in CHAIN}


@pytest.mark.parametrize(
    "database", ["sqlite", pytest.param("postgres", marks=pytest.mark.extended)], indirect=True
)  # the other tests are what Postgres is tried by otherwise
def test_a_deployment_that_lives(scenario, stub):
    deployment = scenario.deployment

    # Everything is built once, in order, and then there is quiet.
    assert scenario.first_build() == Count(runs=6, steps=6, trainings=1)
    assert versions(scenario) == dict.fromkeys(CHAIN, 1)
    built = [deployment.built(asset)[0]["timestamp"] for asset in CHAIN]
    assert all(earlier < later for earlier, later in pairwise(built))
    assert [text.split()[0] for text in stub.texts] == [":rocket:"]
    checked = {
        entry.asset_check_evaluation.asset_check_key
        for run in deployment.instance.get_runs()
        for entry in deployment.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        if entry.asset_check_evaluation
    }
    assert checked == {
        key for key in defs.resolve_asset_graph().asset_check_keys if key.asset_key.to_user_string() in CHAIN
    }

    # The same raw data again is nobody's business: one run, by hand.
    assert scenario.raw_data_again() == Count(runs=7, steps=7, trainings=1)
    assert versions(scenario) == dict.fromkeys(CHAIN, 1) | {"raw_mnist_data": 2}

    # New images are predicted, and nothing else happens.
    assert scenario.images_to_predict() == Count(runs=8, steps=8, trainings=1)
    assert [batch["images"] for batch in deployment.built("batch_digit_predictions")] == [100, 150]

    # Training breaks when labelled digits come. Slack is down, then busy, and gets its one message all the same.
    scenario.checkpoints.rename(scenario.checkpoints.with_name("elsewhere"))
    scenario.checkpoints.write_text("a file where a folder should be")
    scenario.labelled_digits(20)
    deployment.wait_for(lambda: deployment.count().trainings == 2, "the broken training", 120)
    stub.behaviour = ["500", "429"]
    deployment.wait_for(lambda: len(stub.messages) > 1, "the message about the broken step", 120)
    # Evaluation looks at the new data once, finds the same scores, and the chain ends.
    assert scenario.rest() == Count(runs=11, steps=11, trainings=2)
    assert len(stub.messages) == 2
    first, *rest = stub.texts[1].splitlines()
    assert first.startswith(":red_circle: *digit_classifier* failed after ")
    assert "http://ui/runs/" in first
    assert rest[0].startswith("• `digit_classifier`: ")
    assert "checkpoints" in rest[0]
    assert rest[1] == f"deployed model: `{scenario.store.production().version}`"
    assert deployment.is_alive()

    # The next good change recovers. In the midst of training everything is killed and started again.
    scenario.checkpoints.unlink()
    before = scenario.epochs()
    scenario.labelled_digits(100)
    deployment.wait_for(lambda: scenario.epochs() > before + 2, "some epochs", 180)
    [training] = deployment.running()
    deployment.kill()
    before = scenario.epochs()
    deployment.start()
    # More digits come while the training, which goes on where it was, is at work: exactly one more training follows.
    deployment.wait_for(lambda: scenario.epochs() > before, "training to go on", 180)
    scenario.labelled_digits(10)
    resumed, last = scenario.wait_for_more("digit_classifier", 2)[1:]
    assert resumed["resumed_after_epoch"] >= 2
    # Everything is killed again, as soon as the gate has decided.
    deployment.wait_for(lambda: scenario.store.decisions()[0].version == last["model"], "the last decision", 180)
    deployment.kill()
    deployment.start()
    total = scenario.rest()
    assert total.trainings == 5  # the first, the broken, the killed, the resumed, the last
    assert len(deployment.built("digit_classifier")) == 3

    # Nothing was decided twice, nothing deployed twice, and what is deployed has predicted.
    decisions = scenario.store.decisions()
    assert len({decision.version for decision in decisions}) == len(decisions)
    assert decisions[0].version == last["model"]
    promoted = [decision for decision in decisions if decision.outcome == "promoted"]
    assert [decision.replaces for decision in promoted] == [decision.id for decision in promoted[1:]] + [None]
    assert deployment.built("production_digit_classifier")[-1]["candidate"] == last["model"]
    assert deployment.built("batch_digit_predictions")[-1]["model"] == promoted[0].version
    tables = [batch["predictions"] for batch in deployment.built("batch_digit_predictions")]
    assert len(set(tables)) == len(tables)
    outcomes = Counter(run.status for run in deployment.instance.get_runs())
    [again] = [run for run in deployment.instance.get_runs() if run.parent_run_id == training.run_id]
    assert again.status == dg.DagsterRunStatus.SUCCESS
    assert set(outcomes) == {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE}
    # One message for each failed run and each decision.
    kinds = Counter(text.split()[0] for text in stub.texts)
    assert kinds[":red_circle:"] == outcomes[dg.DagsterRunStatus.FAILURE]
    assert kinds[":rocket:"] == len(promoted)
    assert kinds[":no_entry:"] == len(decisions) - len(promoted)

    # A rollback by command reaches Dagster: what is deployed is shown, predicts, and is told once.
    back = scenario.store.rollback("customers complain", "kim", to=promoted[-1].version)
    predictions = "batch_digit_predictions"
    deployment.wait_for(lambda: deployment.built(predictions)[-1]["model"] == back.version, "new predictions", 180)
    assert scenario.rest() == Count(total.runs + 2, total.steps + 2, total.trainings)
    assert deployment.built("production_digit_classifier")[-1]["deployed_because"] == "customers complain"
    [told] = [text for text in stub.texts if "customers complain" in text]
    assert told.startswith(f":rocket: *deployed* `{back.version}` (rollback)")
    assert len(stub.texts) == kinds.total() + 1
    deployment.stop()  # while it runs, SQLite's files come and go
    written = [path for path in deployment.folder.rglob("*") if path.is_file()]
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []
    assert len(written) > 100


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
def test_the_database_goes_away_comes_back_and_is_restored(scenario, server, tmp_path):
    deployment = scenario.deployment
    hold = Path(deployment.variables[HOLD_TRAINING])
    assert scenario.first_build() == Count(runs=6, steps=6, trainings=1)

    # The daemon alone is killed while a training is at work: the run goes on, and is not started again.
    hold.touch()
    before = scenario.epochs()
    scenario.labelled_digits(20)
    deployment.wait_for(lambda: scenario.epochs() == before + HELD_FROM, "some epochs", 180)
    [training] = deployment.running()
    deployment.kill_daemon()
    since = time.time()
    deployment.start_daemon()
    deployment.wait_for(lambda: min(deployment.looks(since).values(), default=0) >= 2, "the next daemon at work")
    assert [run.run_id for run in deployment.running()] == [training.run_id]
    assert deployment.count().trainings == 2

    # The database crashes beside the same training, and comes back when whoever waits for it has given up.
    server.stop("immediate")
    hold.unlink()
    daemon_log = deployment.folder / "daemon.log"
    wait_until(lambda: "too many retries for DB connection" in daemon_log.read_text(), "the daemon to give up")
    server.start()
    scenario.wait_for_more("digit_classifier", 1)
    trainings = scenario.rest().trainings
    assert trainings in (2, 3)  # the step that gave up is tried again in its run, or in the run's successor
    assert deployment.is_alive()
    require_each_decided_once(scenario, 2)

    # A backup while a training is at work, as deploy/README.md has it: the history first, then all that it names.
    hold.touch()
    before = scenario.epochs()
    scenario.labelled_digits(20)
    deployment.wait_for(lambda: scenario.epochs() == before + HELD_FROM, "some epochs", 180)
    backup, storage = tmp_path / "backup", Path(deployment.variables["STORAGE_ROOT"])
    backup.mkdir()
    server.client("pg_dump", "--format=custom", f"--file={backup / 'history'}", server.database)
    copy = [sys.executable, "-m", "mnist_pipeline", "copy", str(backup / "models")]
    subprocess.run(copy, env=deployment.variables, cwd=deployment.folder, check=True)
    for place in ("data", "labelled", "predictions", "checkpoints"):
        shutil.copytree(storage / place, backup / place)
    # The training ends, what it made is deployed, and all of it is lost.
    hold.unlink()
    scenario.wait_for_more("digit_classifier", 2)
    deployment.wait_for(lambda: len(scenario.store.decisions()) == 3, "the decision", 180)
    lost = scenario.store.decisions()[0]
    deployment.kill()
    shutil.rmtree(storage)
    server.client("dropdb", "--force", server.database)
    # Both are restored. The training that the backup caught goes on, and what it makes is decided about, once.
    shutil.copytree(backup, storage, ignore=shutil.ignore_patterns("history"))
    server.client("createdb", server.database)
    server.client("pg_restore", f"--dbname={server.database}", "--exit-on-error", str(backup / "history"))
    assert len(scenario.store.decisions()) == 2
    deployment.start()
    [*_, resumed] = scenario.wait_for_more("digit_classifier", 2)
    assert resumed["resumed_after_epoch"] >= HELD_FROM - 1
    assert scenario.rest().trainings == trainings + 2  # that of the backup, and the one that goes on with it
    require_each_decided_once(scenario, 3)
    again = scenario.store.decisions()[0]
    assert (again.outcome, again.weights_sha256) == (lost.outcome, lost.weights_sha256)
    deployment.stop()
    written = [path for path in deployment.folder.rglob("*") if path.is_file()]
    assert [path for path in written if PASSWORD.encode() in path.read_bytes()] == []
