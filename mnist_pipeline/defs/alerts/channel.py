"""The channel of alerts: something that takes an alert, or says why not."""

from typing import NamedTuple, Protocol

import dagster as dg

from mnist_pipeline.defs.alerts.alert import Alert


class NotTaken(Exception):
    """A channel did not take an alert; the message says why. It is offered again."""


class AskedToWait(NotTaken):
    """A channel wants no alert for some seconds."""

    def __init__(self, seconds: float, why: str = "") -> None:
        super().__init__(f"asked to wait {seconds:.0f} s{f': {why}' if why else ''}")
        self.seconds, self.why = seconds, why


class Channel(Protocol):
    """A place where people read."""

    def send(self, alert: Alert) -> None:
        """Tell `alert` in the channel's own markup. Raises NotTaken, without any secret in its message."""


class ChannelSetup(NamedTuple):
    """A channel as the environment configures it."""

    name: str
    resource: dg.ConfigurableResource | None
    """A Channel; None where a variable is missing."""
    kinds: frozenset[str]
    """The kinds of alerts to send: failures, promotions, approvals, refusals, drift."""
    missing: tuple[str, ...] = ()
    """The variables without which nothing can be sent."""

    @property
    def resource_key(self) -> str:
        """The key of the channel among the resources."""
        return f"{self.name}_channel"
