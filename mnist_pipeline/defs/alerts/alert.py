"""An alert: what happened, as text without markup."""

from collections.abc import Callable
from typing import Literal, NamedTuple


class Fact(NamedTuple):
    """One line of an alert."""

    label: str
    name: str = ""
    text: str = ""

    def line(self, marked_up: Callable[[str], str] = str) -> str:
        """Return `label name: text`, or `label: name` without a text, or the label alone; `marked_up` is for names."""
        if not self.name:
            return self.label
        name = marked_up(self.name)
        return f"{self.label} {name}: {self.text}" if self.text else f"{self.label}: {name}"


class Alert(NamedTuple):
    """Something that people should know; a channel says it in its own markup."""

    kind: Literal["failures", "promotions", "approvals", "refusals", "drift", "unknown"]
    title: str
    text: str
    name: str = ""
    """The version in the text, if there is one."""
    facts: tuple[Fact, ...] = ()

    def __str__(self) -> str:
        """Return the alert as plain lines."""
        return "\n".join([f"{self.title} {self.text}".strip(), *(fact.line() for fact in self.facts)])
