"""Messages to Slack, through the real client, to a server that answers as Slack does, or fails as Slack does."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap  # what is sent to the UI
from dagster_shared.serdes import serialize_value

from mnist_pipeline.definitions import build_definitions
from mnist_pipeline.defs.alerts import channels
from mnist_pipeline.defs.alerts import sensor as sensor_module
from mnist_pipeline.defs.alerts.alert import Alert
from mnist_pipeline.defs.alerts.channel import ChannelSetup, NotTaken
from mnist_pipeline.defs.alerts.channels import channels_from_environment
from mnist_pipeline.defs.alerts.channels import slack as slack_module
from mnist_pipeline.defs.alerts.channels.slack import from_environment
from mnist_pipeline.defs.alerts.sensor import alert_sensor
from mnist_pipeline.environment import Environment
from mnist_pipeline.ml.manifest import Decision
from mnist_pipeline.stores.decisions import new_decision
from mnist_pipeline.task.settings import NetworkSettings
from mnist_pipeline.variables import ALERTS
from mnist_pipeline_tests.conftest import Pipeline, metadata
from mnist_pipeline_tests.defs.slack_stub import TOKEN, SlackStub, slack_stub
from mnist_pipeline_tests.task.examples import TINY


class BadInput(ValueError):
    pass


@dg.op
def breaks():
    try:
        raise KeyError(7)
    except KeyError as error:
        raise BadInput("row <7> is empty\nand more lines") from error


@dg.op
def fails():
    raise dg.Failure("the threshold 1.2 is above 1")


@dg.op(retry_policy=dg.RetryPolicy(max_retries=1))
def fails_again():
    raise FileExistsError(17, "File exists", "/checkpoints")


@dg.job
def broken_job():
    breaks()
    fails()
    fails_again()


def fail(instance: dg.DagsterInstance) -> str:
    return broken_job.execute_in_process(instance=instance, raise_on_error=False).run_id


@pytest.fixture
def stub() -> Iterator[SlackStub]:
    with slack_stub() as server:
        yield server


class Ticks:
    """The sensor of one channel, tick by tick."""

    def __init__(self, instance: dg.DagsterInstance, setup: ChannelSetup) -> None:
        self.instance, self.setup = instance, setup
        self.cursor: str | None = None
        self.sensor = alert_sensor(setup, "http://host:3000/", 30)

    def tick(self) -> str:
        """What the tick says."""
        resources = {self.setup.resource_key: self.setup.resource} if self.setup.resource else {}
        with dg.build_sensor_context(instance=self.instance, cursor=self.cursor, resources=resources) as context:
            result: Any = self.sensor.evaluate_tick(context)
        self.cursor = result.cursor
        assert TOKEN not in f"{result}"
        return str(result.skip_message)


@pytest.fixture
def slack(instance, stub, monkeypatch) -> Callable[..., Ticks]:
    """Slack's sensor, set up by these variables."""

    def slack(**changes: str) -> Ticks:
        variables = {"SLACK_BOT_TOKEN": TOKEN, "SLACK_CHANNEL": "#ml", "SLACK_API_URL": stub.url} | changes
        monkeypatch.setenv("SLACK_BOT_TOKEN", variables["SLACK_BOT_TOKEN"])
        return Ticks(instance, from_environment(Environment.read(variables)))

    return slack


@pytest.fixture
def channel(slack) -> Ticks:
    channel = slack()
    assert channel.tick() == "messages are sent from now on"
    return channel


def test_a_failed_run_is_told_with_steps_real_errors_and_link(channel, stub):
    run_id = fail(channel.instance)
    assert channel.tick() == "sent 1 messages"
    [message] = stub.messages
    assert message["channel"] == "#ml"
    first, *rest = message["text"].splitlines()
    assert first.startswith(":red_circle: *broken_job* failed after ")
    assert first.endswith(f" s: http://host:3000/runs/{run_id}")
    assert set(rest) == {
        "• `breaks`: mnist_pipeline_tests.defs.test_alerts.BadInput: row &lt;7&gt; is empty",
        "• `fails`: the threshold 1.2 is above 1",
        "• `fails_again`: FileExistsError: [Errno 17] File exists: '/checkpoints'",
    }
    assert channel.tick() == "nothing to send"
    assert len(stub.messages) == 1


def test_what_failed_before_is_not_told(instance, slack):
    fail(instance)
    channel = slack()
    assert [channel.tick() for _ in range(2)] == ["messages are sent from now on", "nothing to send"]


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"SLACK_BOT_TOKEN": ""}, "SLACK_BOT_TOKEN is not set"),
        ({"SLACK_CHANNEL": ""}, "SLACK_CHANNEL is not set"),
        ({"SLACK_BOT_TOKEN": "", "SLACK_CHANNEL": ""}, "SLACK_BOT_TOKEN and SLACK_CHANNEL is not set"),
    ],
)
def test_without_a_variable_it_skips_and_names_it(instance, stub, slack, changes, missing):
    channel = slack(**changes)
    fail(instance)
    assert [channel.tick() for _ in range(2)] == [f"no message was sent, because {missing}"] * 2
    assert stub.attempts == 0


def test_what_slack_refuses_fails_the_tick_and_is_sent_once_it_is_mended(channel, stub, instance, slack, monkeypatch):
    wrong = slack(SLACK_BOT_TOKEN="xoxb-revoked")
    wrong.cursor = channel.cursor
    fail(instance)
    for _ in range(2):
        with pytest.raises(NotTaken, match="invalid_auth") as failed:
            wrong.tick()
        assert "xoxb" not in str(failed.value)
    assert stub.messages == []
    monkeypatch.setenv("SLACK_BOT_TOKEN", TOKEN)
    assert channel.tick() == "sent 1 messages"


@pytest.mark.parametrize("fault", ["500", "hang up", "slow", "down"])
def test_while_slack_is_out_of_reach_nothing_is_lost(channel, stub, fault, monkeypatch):
    monkeypatch.setattr(slack_module, "TIMEOUT_SECONDS", 1)
    fail(channel.instance)
    position = channel.cursor
    if fault == "down":
        stub.server_close()
    stub.behaviour = [fault] * 2  # the client itself tries once more
    with pytest.raises(NotTaken):
        channel.tick()
    assert channel.cursor == position
    if fault != "down":
        stub.behaviour = []
        assert channel.tick() == "sent 1 messages"
    if fault != "slow":  # there the server may still take what the client gave up on
        assert len(stub.messages) == (0 if fault == "down" else 1)


def test_told_to_wait_it_waits_as_long_as_it_is_told(channel, stub):
    fail(channel.instance)
    fail(channel.instance)
    stub.behaviour = ["ok", "429"]
    assert channel.tick() == "Slack took 1 messages and asked to wait 2 s with the next"
    attempts = stub.attempts
    assert channel.tick().startswith("Slack asked to wait")
    assert stub.attempts == attempts
    time.sleep(2.1)
    assert channel.tick() == "sent 1 messages"
    assert len({message["text"] for message in stub.messages}) == 2


def test_a_fault_in_the_middle_repeats_nothing(channel, stub):
    for _ in range(3):
        fail(channel.instance)
    stub.behaviour = ["ok", "ok", "500"]
    assert channel.tick().startswith("Slack took 2 messages, but not the next one, which is tried again: ")
    assert channel.tick() == "sent 1 messages"
    assert len({message["text"] for message in stub.messages}) == len(stub.messages) == 3


def test_after_a_long_silence_messages_come_a_few_at_a_time(channel, stub):
    for _ in range(7):
        fail(channel.instance)
    assert [channel.tick() for _ in range(3)] == ["sent 5 messages", "sent 2 messages", "nothing to send"]
    assert len(stub.messages) == 7


WORSE = {**TINY, "epochs": 1, "learning_rate": 0.00001}


def test_decisions_and_drift_of_the_real_graph(channel, stub, environment, instance, tmp_path, small_dataset):
    import numpy as np

    pipeline = Pipeline(environment, instance)
    pipeline.run()
    promoted = pipeline.store.production()
    assert channel.tick() == "sent 1 messages"
    assert stub.texts[0].startswith(f":rocket: *deployed* `{promoted.version}` (quality): ")
    assert f"candidate `{promoted.version}`: test accuracy {promoted.test_accuracy:.4f}" in stub.texts[0]

    pipeline.run(digit_classifier=WORSE, production_digit_classifier={"accuracy_threshold": 0.0})
    assert channel.tick() == "sent 1 messages"
    assert stub.texts[1].startswith(f":no_entry: *refused* `mnist_{NetworkSettings.FAMILY}_")
    assert "and it is worse" in stub.texts[1]
    assert f"incumbent `{promoted.version}`: test accuracy {promoted.test_accuracy:.4f}" in stub.texts[1]

    inverted = tmp_path / "inverted.npy"
    np.save(inverted, 255 - small_dataset.test.images)
    for _ in range(2):  # the second time the table is there already
        result = pipeline.run("batch_digit_predictions", batch_digit_predictions={"input_paths": [str(inverted)]})
    assert channel.tick() == "sent 1 messages"
    assert stub.texts[2].startswith(":warning: *predictions look unlike the training data* (")
    assert metadata(result, "batch_digit_predictions")["drifted"] in stub.texts[2]
    assert "Label such images: on /review" in metadata(result, "batch_digit_predictions")["what_to_label"]
    assert "% of the validation images. Label such images" in stub.texts[2]
    assert f"200 images by `{promoted.version}`, http://host:3000/runs/" in stub.texts[2]

    fail(instance)
    channel.tick()
    assert f"deployed model: `{promoted.version}`" in stub.texts[3]
    assert "\ndata: `" in stub.texts[3]


def decision(outcome: str) -> Decision:
    return new_decision(
        outcome=outcome,
        strategy="quality",
        reason="a <reason>",
        version="v",
        weights_sha256="0",
        incumbent=None,
        actor="t",
    )


@pytest.mark.parametrize(
    ("outcome", "kind"), [("promoted", "promotions"), ("refused", "refusals"), ("waiting", "approvals")]
)
def test_each_kind_of_decision_can_be_switched_off(instance, stub, slack, outcome, kind):
    others = ",".join(set(ALERTS) - {kind})
    told, quiet = slack(SLACK_ALERTS=kind), slack(SLACK_ALERTS=others)
    for ticks in (told, quiet):
        ticks.tick()
    observe(instance, decision(outcome))
    assert quiet.tick() == "nothing to send"
    assert told.tick() == "sent 1 messages"
    assert "a &lt;reason&gt;" in stub.texts[0]
    observe(instance, decision("unchanged"))
    observe(instance, decision("an outcome of another version of the code"))
    assert [quiet.tick(), told.tick()] == ["nothing to send"] * 2


def observe(instance: dg.DagsterInstance, decision: Decision) -> None:
    values = decision.model_dump(mode="json")
    instance.report_runless_asset_event(dg.AssetObservation("production_digit_classifier", metadata=values))


def test_failures_and_drift_can_be_switched_off(instance, channel, slack):
    quiet = slack(SLACK_ALERTS="promotions")
    quiet.cursor = channel.cursor
    fail(instance)
    drifted: dict[str, Any] = {
        "drifted_statistics": 1,
        "drifted": "brightness",
        "images": 3,
        "model": "v",
    }
    instance.report_runless_asset_event(dg.AssetMaterialization("batch_digit_predictions", metadata=drifted))
    assert quiet.tick() == "nothing to send"
    assert channel.tick() == "sent 2 messages"


def test_an_event_that_somebody_else_made_stops_nothing(channel, stub, instance):
    instance.report_runless_asset_event(
        dg.AssetObservation("production_digit_classifier", metadata={"note": "by hand"})
    )
    instance.report_runless_asset_event(dg.AssetMaterialization("production_digit_classifier"))
    instance.report_runless_asset_event(dg.AssetMaterialization("batch_digit_predictions"))
    fail(instance)
    assert channel.tick() == "sent 2 messages"
    assert "\ndeployed model: `unknown`" in stub.texts[0]
    assert stub.texts[1].startswith(":grey_question: an event of run ")
    assert channel.tick() == "nothing to send"


def test_after_variables_were_missing_it_begins_anew(instance, channel, slack, monkeypatch):
    without = slack(SLACK_BOT_TOKEN="")
    without.cursor = channel.cursor
    fail(instance)
    without.tick()
    monkeypatch.setenv("SLACK_BOT_TOKEN", TOKEN)
    channel.cursor = without.cursor
    assert [channel.tick() for _ in range(2)] == ["messages are sent from now on", "nothing to send"]


def test_a_slow_slack_does_not_use_up_the_tick(channel, stub, monkeypatch):
    monkeypatch.setattr(sensor_module, "TICK_SECONDS", 0)
    for _ in range(2):
        fail(channel.instance)
    assert [channel.tick() for _ in range(3)] == ["sent 1 messages", "sent 1 messages", "nothing to send"]


def test_a_decision_that_a_retry_reports_again_is_told_once(channel, stub, instance):
    refused = decision("refused")
    for _ in range(2):
        observe(instance, refused)
    assert channel.tick() == "sent 1 messages"


class Board(dg.ConfigurableResource):
    """A second channel: a file of plain lines."""

    path: str

    def send(self, alert: Alert) -> None:
        with Path(self.path).open("a") as file:
            print(alert, file=file)


def test_a_second_channel_is_a_class_with_one_method(instance, tmp_path):
    board = Ticks(instance, ChannelSetup("board", Board(path=str(tmp_path / "board")), frozenset(ALERTS)))
    assert board.sensor.name == "board_alerts"
    board.tick()
    run_id = fail(instance)
    observe(instance, decision("promoted"))
    assert board.tick() == "sent 2 messages"
    first, *steps, deployed, candidate = (tmp_path / "board").read_text().splitlines()
    assert first.startswith("broken_job failed after ")
    assert first.endswith(f"http://host:3000/runs/{run_id}")
    assert "• fails: the threshold 1.2 is above 1" in steps
    assert (deployed, candidate) == ("deployed v (quality): a <reason>", "candidate v: not measured")


def test_the_token_is_given_by_its_name_only(monkeypatch):
    environment = Environment.read({"SLACK_BOT_TOKEN": TOKEN, "SLACK_CHANNEL": "#ml"})
    [setup] = channels_from_environment(environment)
    assert setup.name == "slack"
    assert TOKEN not in repr(setup)
    monkeypatch.setenv("SLACK_BOT_TOKEN", TOKEN)
    sent = RepositorySnap.from_def(build_definitions(environment).get_repository_def())
    assert "SLACK_BOT_TOKEN" in serialize_value(sent)
    assert TOKEN not in serialize_value(sent)


BOARD = """
import dagster as dg
from mnist_pipeline.defs.alerts.channel import ChannelSetup

class Board(dg.ConfigurableResource):
    def send(self, alert): ...

def from_environment(environment):
    return ChannelSetup("board", Board(), environment.alert_kinds())
"""


def test_a_file_among_the_channels_is_a_channel(tmp_path, monkeypatch):
    (tmp_path / "board_of_a_test.py").write_text(BOARD)
    monkeypatch.setattr(channels, "__path__", [*channels.__path__, str(tmp_path)])
    definitions = build_definitions(Environment.read({}))
    assert "board_channel" in (definitions.resources or {})
    sensors = {sensor.name: sensor.required_resource_keys for sensor in definitions.sensors or []}
    assert sensors["board_alerts"] == {"board_channel"}
    assert sensors["slack_alerts"] == set()
