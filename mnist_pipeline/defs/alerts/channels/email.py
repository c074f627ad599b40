"""Alerts by e-mail."""

import logging
import smtplib
import ssl
from contextlib import suppress
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from urllib.parse import SplitResult, unquote, urlsplit

import dagster as dg
from pydantic import Field

from mnist_pipeline.defs.alerts.alert import Alert
from mnist_pipeline.defs.alerts.channel import AskedToWait, ChannelSetup, NotTaken
from mnist_pipeline.environment import Environment
from mnist_pipeline.variables import SMTP_PORTS

TIMEOUT_SECONDS = 10
RETRY_SECONDS = 60
"""A server that cannot take a message now (an answer of 4..) is asked again after so long."""

SUBJECT_CHARACTERS = 120

MOST_CHARACTERS = 500
"""So much of a refusal is told."""

log = logging.getLogger(__name__)


def from_environment(environment: Environment) -> ChannelSetup | None:
    """Return the channel of ALERT_EMAIL_TO and SMTP_URL, None where neither is set."""
    needed = {"ALERT_EMAIL_TO": environment.alert_email_to, "SMTP_URL": environment.smtp_url}
    missing = tuple(name for name, value in needed.items() if not value)
    if len(missing) == len(needed):
        return None
    if missing:
        return ChannelSetup("email", None, environment.alert_kinds(), missing)
    channel = EmailChannel(
        url=dg.EnvVar("SMTP_URL"),  # by name: the password would be sent to the UI in clear
        to=str(environment.alert_email_to),
        task=environment.task_name,
    )
    return ChannelSetup("email", channel, environment.alert_kinds())


class EmailChannel(dg.ConfigurableResource):
    """People who read e-mail."""

    url: str = Field(description="smtp:// or smtps://, with user and password.")
    to: str = Field(description="Addresses, with commas between them.")
    task: str = Field(description="The name that the subject begins with.")

    def send(self, alert: Alert) -> None:
        """Send the alert to all addresses, in one message.

        Raises AskedToWait where the server cannot take it now, NotTaken where it refuses or cannot be reached. An
        address that it refuses among others is told in the log.
        """
        server = urlsplit(self.url)
        message = self._message(alert, server)
        try:
            connection = _connect(server)
            try:
                _log_in(connection, server)
                refused = connection.send_message(message)
                with suppress(smtplib.SMTPException, OSError):  # it has taken the message, however it says good-bye
                    connection.quit()
            finally:
                connection.close()
        except smtplib.SMTPRecipientsRefused as error:
            raise _not_taken([code for code, _ in error.recipients.values()], str(error)) from error
        except smtplib.SMTPResponseException as error:
            raise _not_taken([error.smtp_code], f"{type(error).__name__}: {error}") from error
        except (smtplib.SMTPException, OSError) as error:
            raise NotTaken(f"{type(error).__name__}: {error}") from error
        for address, (code, reply) in refused.items():
            log.warning("an alert was not sent to %s: %s %r", address, code, reply)

    def _message(self, alert: Alert, server: SplitResult) -> EmailMessage:
        text = str(alert)
        sender = unquote(server.query.removeprefix("from=")) or unquote(server.username or "")
        receivers = [address.strip() for address in self.to.split(",")]
        message = EmailMessage()
        subject = f"[{self.task}] {' '.join(text.partition(chr(10))[0].split())}"
        message["Subject"] = subject if len(subject) <= SUBJECT_CHARACTERS else f"{subject[:SUBJECT_CHARACTERS]}..."
        message["From"] = sender if "@" in sender else receivers[0]
        message["To"] = ", ".join(receivers)
        message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain=str(server.hostname))
        message.set_content(f"{text}\n")
        return message


def _connect(server: SplitResult) -> smtplib.SMTP:
    host, port = str(server.hostname), server.port or SMTP_PORTS[server.scheme]
    if server.scheme == "smtps":
        return smtplib.SMTP_SSL(host, port, timeout=TIMEOUT_SECONDS, context=ssl.create_default_context())
    return smtplib.SMTP(host, port, timeout=TIMEOUT_SECONDS)


def _log_in(connection: smtplib.SMTP, server: SplitResult) -> None:
    """Begin TLS, where the server has it, and log in. Raises NotTaken rather than send a password in clear."""
    is_safe = server.scheme == "smtps"
    connection.ehlo()
    if not is_safe and connection.has_extn("starttls"):
        connection.starttls(context=ssl.create_default_context())
        connection.ehlo()
        is_safe = True
    if server.password:
        if not is_safe:
            raise NotTaken(f"{server.hostname} offers no TLS, and a password is not sent in clear: use smtps://")
        connection.login(unquote(server.username or ""), unquote(server.password))


def _not_taken(codes: list[int], why: str) -> NotTaken:
    why = why[:MOST_CHARACTERS]
    return AskedToWait(RETRY_SECONDS, why) if all(400 <= code < 500 for code in codes) else NotTaken(why)
