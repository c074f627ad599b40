"""The real daemon and code server: what automation does, and does not do, while things happen around it."""

from collections import Counter
from itertools import pairwise

import dagster as dg
import pytest

from mnist_pipeline.definitions import defs
from mnist_pipeline_tests.live import Count
from mnist_pipeline_tests.scenario import CHAIN, Scenario
from mnist_pipeline_tests.slack_stub import TOKEN, slack_stub


@pytest.fixture
def stub():
    with slack_stub() as server:
        yield server


@pytest.fixture
def scenario(tmp_path, stub):
    scenario = Scenario(
        tmp_path, SLACK_BOT_TOKEN=TOKEN, SLACK_CHANNEL="#ml", SLACK_API_URL=stub.url, DAGSTER_WEBSERVER_URL="http://ui"
    )
    yield scenario
    scenario.deployment.stop()


def versions(scenario: Scenario) -> dict[str, int]:
    return {asset: len(scenario.deployment.built(asset)) for asset in CHAIN}


def test_a_deployment_that_lives(scenario, stub):
    deployment = scenario.deployment

    # Everything is built once, in order, and then there is quiet.
    assert scenario.first_build() == Count(runs=6, steps=12, trainings=1)
    assert versions(scenario) == dict.fromkeys(CHAIN, 1)
    built = [deployment.built(asset)[0]["timestamp"] for asset in CHAIN]
    assert all(earlier < later for earlier, later in pairwise(built))
    assert [text.split()[0] for text in stub.texts] == [":rocket:"]
    with deployment.instance() as instance:
        checked = {
            entry.asset_check_evaluation.asset_check_key
            for run in instance.get_runs()
            for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
            if entry.asset_check_evaluation
        }
    on_request = dg.AssetKey("digit_predictions")
    assert checked == {key for key in defs.resolve_asset_graph().asset_check_keys if key.asset_key != on_request}

    # The same raw data again is nobody's business: one run, by hand, with its check.
    assert scenario.raw_data_again() == Count(runs=7, steps=14, trainings=1)
    assert versions(scenario) == dict.fromkeys(CHAIN, 1) | {"raw_mnist_data": 2}

    # Training breaks when labelled digits come: one message, and the daemon lives on.
    scenario.checkpoints.rename(scenario.checkpoints.with_name("elsewhere"))
    scenario.checkpoints.write_text("a file where a folder should be")
    scenario.labelled_digits(20)
    deployment.wait_for(lambda: len(stub.messages) > 1, "the message about the broken step", 180)
    assert scenario.rest() == Count(runs=9, steps=17, trainings=2)
    assert len(stub.messages) == 2
    first, *rest = stub.texts[1].splitlines()
    assert first.startswith(":red_circle: *digit_classifier* failed after ")
    assert "http://ui/runs/" in first
    assert rest[0].startswith("• `digit_classifier`: ")
    assert "checkpoints" in rest[0]
    assert rest[1] == f"deployed model: `{scenario.store.production().version}`"
    assert deployment.is_alive()

    # The next good change recovers. In the midst of it, everything is killed and started again.
    scenario.checkpoints.unlink()
    scenario.labelled_digits(40)
    with deployment.instance() as instance:
        trained = dg.AssetKey("digit_classifier")
        epochs = len(instance.fetch_observations(trained, limit=1000).records)
        deployment.wait_for(
            lambda: len(instance.fetch_observations(trained, limit=1000).records) > epochs + 2, "some epochs", 180
        )
    [training] = deployment.running()
    deployment.kill()
    deployment.start()
    trained_again = scenario.wait_for_more("digit_classifier", 1)[-1]
    assert trained_again["resumed_after_epoch"] >= 2
    scenario.wait_for_more("production_digit_classifier", 1)
    scenario.rest()
    first_decision, last_decision = sorted(scenario.store.decisions(), key=lambda decision: decision.id)
    assert first_decision.outcome == "promoted"
    assert last_decision.version == trained_again["model"]
    assert scenario.store.production().id in (first_decision.id, last_decision.id)
    deployed = last_decision.outcome == "promoted"
    # processed twice more: for the change that broke training and for the one that healed it
    assert versions(scenario) == {
        "raw_mnist_data": 2,
        "processed_mnist_data": 3,
        "digit_classifier": 2,
        "model_evaluation": 2,
        "production_digit_classifier": 2,
        "batch_digit_predictions": 2 if deployed else 1,
    }
    with deployment.instance() as instance:
        outcomes = Counter(run.status for run in instance.get_runs())
        [again] = [run for run in instance.get_runs() if run.parent_run_id == training.run_id]
    assert again.status == dg.DagsterRunStatus.SUCCESS
    failed = 2  # the broken training, and the one that was killed
    assert outcomes == {dg.DagsterRunStatus.FAILURE: failed, dg.DagsterRunStatus.SUCCESS: 12 + deployed}
    # One message each: the broken step, the killed run, two decisions.
    kinds = Counter(text.split()[0] for text in stub.texts)
    assert kinds == Counter({":red_circle:": failed, ":rocket:": 1 + deployed}) + Counter(
        {":no_entry:": int(not deployed)}
    )
    assert TOKEN not in deployment.log()
