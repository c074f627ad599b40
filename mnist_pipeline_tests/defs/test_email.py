"""Alerts by e-mail, through the real client, to a mail server on loopback."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import dagster as dg
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap  # what is sent to the UI
from dagster_shared.serdes import serialize_value

from mnist_pipeline.definitions import build_definitions
from mnist_pipeline.defs.alerts.alert import Alert, Fact
from mnist_pipeline.defs.alerts.channel import AskedToWait, NotTaken
from mnist_pipeline.defs.alerts.channels.email import RETRY_SECONDS, EmailChannel, from_environment
from mnist_pipeline.defs.engines.choosing import passed_on
from mnist_pipeline.environment import Environment, EnvironmentInvalid
from mnist_pipeline_tests.defs.smtp_stub import PASSWORD, USER, SmtpStub, certificate, smtp_stub
from mnist_pipeline_tests.defs.test_alerts import Ticks, fail

LOGIN = f"{quote(USER, safe='')}:{quote(PASSWORD, safe='')}@"
ALERT = Alert("refusals", "refused", "v with\na second line", "v", (Fact("deployed", "w", "0.98"),))


@pytest.fixture
def pem(tmp_path, monkeypatch) -> Path:
    """A certificate that the client trusts."""
    file = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    return file


@pytest.fixture
def server(pem) -> Iterator[SmtpStub]:
    with smtp_stub(pem) as found:
        yield found


def channel(url: str, to: str = "a@example.com, b@example.com") -> EmailChannel:
    return EmailChannel(url=url, to=to, task="mnist")


@pytest.fixture
def ticks(instance, monkeypatch) -> Callable[[str], Ticks]:
    """The sensor of a channel that the variables set up."""

    def of(url: str) -> Ticks:
        monkeypatch.setenv("SMTP_URL", url)
        setup = from_environment(Environment.read({"ALERT_EMAIL_TO": "a@example.com", "SMTP_URL": url}))
        assert setup
        return Ticks(instance, setup)

    return of


def test_a_failed_run_is_told_over_tls_after_a_login(ticks, server):
    sensor = ticks(server.url(LOGIN))
    assert sensor.tick() == "messages are sent from now on"
    run_id = fail(sensor.instance)
    assert sensor.tick() == "sent 1 messages"
    [message] = server.messages
    assert message["Subject"].startswith("[mnist] broken_job failed after ")
    assert (message["From"], message["To"]) == (USER, "a@example.com")
    assert message["Date"]
    assert message["Message-ID"].endswith("@localhost>")
    first, *rest = message.get_content().splitlines()
    assert first.endswith(f" s: http://host:3000/runs/{run_id}")
    assert "• fails: the threshold 1.2 is above 1" in rest
    assert b"STARTTLS\r\n" in server.seen
    assert not any(line.startswith(b"AUTH") for line in server.seen)  # nor anything after it: it came encrypted


@pytest.mark.parametrize("tls", ["smtps", "starttls"])
def test_all_receivers_are_told_in_one_message(pem, tls):
    with smtp_stub(pem, tls) as server:
        channel(server.url(LOGIN, "?from=gate+ml@example.com")).send(ALERT)
        [message] = server.messages
        assert message["From"] == "gate+ml@example.com"
        assert message["Subject"] == "[mnist] refused v with"
        assert message.get_content().splitlines() == ["refused v with", "a second line", "deployed w: 0.98"]
        assert server.receivers == [["a@example.com", "b@example.com"]]


def test_a_relay_without_tls_gets_messages_and_no_password(pem):
    with smtp_stub(pem, "none") as server:
        with pytest.raises(NotTaken, match="localhost offers no TLS, and a password is not sent in clear"):
            channel(server.url(LOGIN)).send(ALERT)
        assert server.messages == []
        channel(server.url()).send(ALERT)
        assert len(server.messages) == 1
        assert server.messages[0]["From"] == "a@example.com"


def test_a_server_with_a_certificate_of_another_is_told_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate(tmp_path, "another")))
    with smtp_stub(certificate(tmp_path, "localhost")) as server:
        with pytest.raises(NotTaken, match="CERTIFICATE_VERIFY_FAILED"):
            channel(server.url(LOGIN)).send(ALERT)
        assert server.messages == []


def test_a_wrong_password_fails_the_tick_and_stands_nowhere(ticks, server):
    sensor = ticks(server.url(LOGIN.replace("password", "secret")))
    sensor.tick()
    fail(sensor.instance)
    with pytest.raises(NotTaken, match="SMTPAuthenticationError") as refused:
        sensor.tick()
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("refusal", [{"mail": "451 greylisted"}, {"rcpt": "450 busy"}, {"data": "452 disk is full"}])
def test_a_server_that_cannot_now_is_asked_later(server, refusal):
    server.refusals = refusal
    with pytest.raises(AskedToWait) as wish:
        channel(server.url(LOGIN)).send(ALERT)
    assert wish.value.seconds == RETRY_SECONDS


@pytest.mark.parametrize("good_bye", ["250 ok", "421 too busy to say good-bye"])
def test_a_message_that_was_taken_is_not_sent_again(ticks, server, good_bye):
    server.refusals = {"QUIT": good_bye, "quit": good_bye}
    sensor = ticks(server.url(LOGIN))
    sensor.tick()
    fail(sensor.instance)
    assert [sensor.tick(), sensor.tick()] == ["sent 1 messages", "nothing to send"]
    assert len(server.messages) == 1


def test_the_tick_says_why_it_waits(ticks, server):
    server.refusals = {"mail": "451 greylisted"}
    sensor = ticks(server.url(LOGIN))
    sensor.tick()
    fail(sensor.instance)
    assert "Email took 0 messages and asked to wait 60 s with the next: " in (said := sensor.tick())
    assert "greylisted" in said


def test_an_unknown_receiver_among_others_is_told_in_the_log(server, caplog):
    server.refusals = {"b@example.com": "550 unknown"}
    with caplog.at_level(logging.WARNING):
        channel(server.url(LOGIN)).send(ALERT)
    assert server.receivers == [["a@example.com"]]
    assert "an alert was not sent to b@example.com: 550" in caplog.text
    server.refusals = {"rcpt": "550 unknown"}
    with pytest.raises(NotTaken, match="unknown"):
        channel(server.url(LOGIN)).send(ALERT)


def test_a_server_that_is_away_is_tried_again():
    with pytest.raises(NotTaken, match="ConnectionRefusedError"):
        channel("smtp://127.0.0.1:1").send(ALERT)


def test_the_sensor_is_there_once_a_variable_is(server):
    def sensors(**variables: str) -> set[str]:
        return {sensor.name for sensor in build_definitions(Environment.read(variables)).sensors or []}

    assert "email_alerts" not in sensors()
    assert "email_alerts" in sensors(ALERT_EMAIL_TO="a@example.com")
    setup = from_environment(Environment.read({"ALERT_EMAIL_TO": "a@example.com"}))
    assert setup
    with dg.DagsterInstance.ephemeral() as instance:
        assert Ticks(instance, setup).tick() == "no message was sent, because SMTP_URL is not set"


def test_the_password_is_given_by_its_name_only(server, monkeypatch):
    url = server.url(LOGIN)
    monkeypatch.setenv("SMTP_URL", url)
    environment = Environment.read({"ALERT_EMAIL_TO": "a@example.com", "SMTP_URL": url})
    sent = serialize_value(RepositorySnap.from_def(build_definitions(environment).get_repository_def()))
    assert "SMTP_URL" in sent
    assert quote(PASSWORD, safe="") not in sent
    assert PASSWORD not in json.dumps(environment.model_dump(mode="json"))
    assert "SMTP_URL" not in passed_on()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALERT_EMAIL_TO", "nobody"),
        ("ALERT_EMAIL_TO", "a@example.com,,b@example.com"),
        ("ALERT_EMAIL_TO", "a@example.com\nBcc: c@example.com"),
        ("SMTP_URL", "mail.example.com"),
        ("SMTP_URL", "http://hidden:hidden@mail.example.com"),
        ("SMTP_URL", "smtp://hidden:hidden@mail.example.com:many"),
        ("SMTP_URL", "smtp://hidden@mail.example.com"),
        ("SMTP_URL", "smtp://"),
        ("SMTP_URL", "smtp://a:hidd%C3%A4n@mail.example.com"),
        ("SMTP_URL", "smtp://mail.example.com?from=nobody"),
        ("SMTP_URL", "smtp://mail.example.com?from=a@example.com%0d%0aBcc:b@example.com"),
        ("SMTP_URL", "smtp://mail.example.com?form=a@example.com"),
        ("ALERT_EMAIL_TO", "a@example.com;b@example.com"),
        ("ALERT_EMAIL_TO", "a@@example.com"),
        ("ALERT_EMAIL_TO", "A <a@example.com>"),
    ],
)
def test_what_cannot_be_an_address_or_a_server_is_refused_without_the_password(name, value):
    with pytest.raises(EnvironmentInvalid, match=f"^{name}: ") as refused:
        Environment.read({name: value})
    assert "hidden" not in str(refused.value)
