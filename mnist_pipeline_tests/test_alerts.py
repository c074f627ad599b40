"""The message about a failed run."""

import dagster as dg
import pytest
from pydantic import SecretStr

from mnist_pipeline.alerts import slack_failure_sensor


class BadInput(ValueError):
    pass


@dg.op
def breaks():
    try:
        raise BadInput("row 7 is empty\nand more lines")
    except BadInput as error:
        raise RuntimeError("a wrapper") from error


@dg.op
def fails():
    raise dg.Failure("the threshold 1.2 is above 1")


@dg.job
def broken_job():
    breaks()
    fails()


@pytest.fixture
def failed():
    with dg.DagsterInstance.ephemeral() as instance:
        result = broken_job.execute_in_process(instance=instance, raise_on_error=False)
        [event] = [event for event in result.all_events if event.event_type_value == "PIPELINE_FAILURE"]

        def tick(sensor: dg.SensorDefinition):
            context = dg.build_run_status_sensor_context(
                sensor_name=sensor.name,
                dagster_event=event,
                dagster_instance=instance,
                dagster_run=result.dagster_run,
            ).for_run_failure()
            return sensor(context)

        yield tick, result.run_id


def test_the_message_names_steps_real_errors_and_the_run(failed):
    tick, run_id = failed
    sent: list[tuple[str, str, str]] = []
    tick(slack_failure_sensor(SecretStr("xoxb"), "#ml", "http://host:3000/", lambda *args: sent.append(args)))
    [(token, channel, text)] = sent
    assert (token, channel) == ("xoxb", "#ml")
    assert f"*broken_job* failed: http://host:3000/runs/{run_id}" in text
    assert "`breaks`: " in text
    assert "row 7 is empty" in text
    assert "and more lines" not in text
    assert "`fails`: the threshold 1.2 is above 1" in text
    assert "xoxb" not in text


@pytest.mark.parametrize(
    ("token", "channel", "missing"),
    [
        (None, "#ml", "SLACK_BOT_TOKEN is not set"),
        (SecretStr("xoxb"), None, "SLACK_CHANNEL is not set"),
        (None, None, "SLACK_BOT_TOKEN and SLACK_CHANNEL"),
    ],
)
def test_without_a_variable_it_skips_and_names_it(failed, token, channel, missing):
    tick, _ = failed
    sent: list[tuple[str, str, str]] = []
    skipped = tick(slack_failure_sensor(token, channel, None, lambda *args: sent.append(args)))
    assert missing in skipped.skip_message
    assert sent == []
