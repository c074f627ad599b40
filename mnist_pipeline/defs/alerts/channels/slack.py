"""Alerts to Slack."""

import html
from http.client import HTTPException

import dagster as dg
from dagster_slack import SlackResource
from pydantic import Field
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError, SlackClientError

from mnist_pipeline.defs.alerts.alert import Alert, Fact
from mnist_pipeline.defs.alerts.channel import AskedToWait, ChannelSetup, NotTaken
from mnist_pipeline.environment import Environment

TIMEOUT_SECONDS = 10
DEFAULT_RETRY_AFTER_SECONDS = 30
TOO_MANY_REQUESTS = 429
EMOJI = {
    "failures": ":red_circle:",
    "promotions": ":rocket:",
    "approvals": ":hourglass:",
    "refusals": ":no_entry:",
    "drift": ":warning:",
    "unknown": ":grey_question:",
}


def from_environment(environment: Environment) -> ChannelSetup:
    """Return the channel of SLACK_BOT_TOKEN and SLACK_CHANNEL."""
    needed = {"SLACK_BOT_TOKEN": environment.slack_bot_token, "SLACK_CHANNEL": environment.slack_channel}
    missing = tuple(name for name, value in needed.items() if not value)
    if missing:
        return ChannelSetup("slack", None, environment.alert_kinds(), missing)
    channel = SlackChannel(
        token=dg.EnvVar("SLACK_BOT_TOKEN"),  # by name: a plain token would be sent to the UI in clear
        channel=str(environment.slack_channel),
        api_url=environment.slack_api_url,
    )
    return ChannelSetup("slack", channel, environment.alert_kinds())


class SlackChannel(SlackResource):
    """A channel of a Slack workspace."""

    channel: str = Field(description="Name or id of the channel.")
    api_url: str = Field(description="Slack's, or another one for GovSlack and for proxies.")

    def get_client(self) -> WebClient:
        """Return a client that does not retry by itself: what was not taken is offered again by the next tick."""
        return WebClient(self.token, base_url=self.api_url, timeout=TIMEOUT_SECONDS, retry_handlers=[])

    def send(self, alert: Alert) -> None:
        """Post the alert. Raises AskedToWait where Slack says so, NotTaken where it refuses or cannot be reached."""
        try:
            self.get_client().chat_postMessage(channel=self.channel, text=marked_up(alert), unfurl_links=False)
        except SlackApiError as error:
            if error.response.status_code == TOO_MANY_REQUESTS:
                seconds = error.response.headers.get("Retry-After", DEFAULT_RETRY_AFTER_SECONDS)
                raise AskedToWait(float(seconds)) from error
            raise NotTaken(str(error)) from error
        except (SlackClientError, HTTPException, OSError) as error:
            raise NotTaken(f"{type(error).__name__}: {error}") from error


def marked_up(alert: Alert) -> str:
    """Return the alert in Slack's markup: an emoji, the title bold, names as code."""
    title, text, name = (_escaped(part) for part in (alert.title, alert.text, alert.name))
    if name:
        text = text.replace(name, f"`{name}`", 1)
    first = " ".join(filter(None, [EMOJI[alert.kind], title and f"*{title}*", text]))
    # Escaping comes first: it leaves the marks alone.
    facts = [Fact(*map(_escaped, fact)) for fact in alert.facts]
    return "\n".join([first, *(fact.line(lambda name: f"`{name}`") for fact in facts)])


def _escaped(text: str) -> str:
    """Escape what Slack's message syntax wants escaped: &, < and > only."""
    return html.escape(text, quote=False)
