"""The Slack message about a failed run."""

from collections.abc import Callable

import dagster as dg
from pydantic import SecretStr


def failure_text(job: str, run_id: str, failed: dict[str, str], webserver_url: str | None) -> str:
    """The message: job, each failed step with the first line of its real error, and where to look."""
    where = f"{webserver_url.rstrip('/')}/runs/{run_id}" if webserver_url else f"run {run_id}"
    lines = [f":red_circle: *{job}* failed: {where}"]
    lines += [
        f"• `{step}`: {error.strip().splitlines()[0] if error.strip() else 'no message'}"
        for step, error in failed.items()
    ]
    return "\n".join(lines)


def real_error(event: dg.DagsterEvent) -> str:
    """The message of the innermost error of a failed step, not of Dagster's wrapper around it."""
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return data.user_failure_data.description
    error = data.error
    while error and error.cause:
        error = error.cause
    return error.message if error else "no message"


def slack_failure_sensor(
    token: SecretStr | None,
    channel: str | None,
    webserver_url: str | None,
    post: Callable[[str, str, str], None] | None = None,
) -> dg.SensorDefinition:
    """Posts on every failed run; skips, with the reason in its tick, while a variable is missing.

    `post` takes token, channel and text; by default it is Slack's own client.
    """
    needed = {"SLACK_BOT_TOKEN": token, "SLACK_CHANNEL": channel}
    missing = [name for name, value in needed.items() if not value]
    send = post or _post

    @dg.run_failure_sensor(
        name="slack_on_run_failure",
        description="Posts to Slack when a run fails.",
        default_status=dg.DefaultSensorStatus.RUNNING,
        monitor_all_code_locations=True,  # runs from the command line belong to no code location
    )
    def slack_on_run_failure(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
        if missing or token is None or channel is None:
            return dg.SkipReason(f"no message was sent, because {' and '.join(missing)} is not set")
        failed = {event.step_key or "": real_error(event) for event in context.get_step_failure_events()}
        failed = failed or {"run": context.failure_event.message or ""}
        run = context.dagster_run
        send(token.get_secret_value(), channel, failure_text(run.job_name, run.run_id, failed, webserver_url))
        return None

    return slack_on_run_failure


def _post(token: str, channel: str, text: str) -> None:
    from dagster_slack import SlackResource

    SlackResource(token=token).get_client().chat_postMessage(channel=channel, text=text)
