"""The kinds of values that environment variables have; each refuses, with a ValueError, what it cannot be."""

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, SecretStr

from mnist_pipeline.files.cloud import SCHEMES, parse_address, require_url

ALERTS = ("failures", "promotions", "approvals", "refusals", "drift")
"""The kinds of alerts."""

EMAIL_ADDRESS = r"[^\s@<>()\[\],;:\"\\]+@[^\s@<>()\[\],;:\"\\]+"
"""An address as people write it; of what standards allow beside that, mail clients understand various parts."""

SMTP_PORTS = {"smtp": 587, "smtps": 465}
"""The kinds of addresses of mail servers, with their usual ports."""

STORES_OF_BEFORE = ("local", "s3")
"""Values of MODEL_STORE of before a store was named by an address; they are still read."""


def absolute(path: str) -> str:
    """Return `path` from the root: `~` is the home folder, a relative path begins at the folder of the command."""
    return str(Path(path).expanduser().absolute())


def _local_folder(value: str) -> str:
    if "://" in value:
        raise ValueError(f"{value!r} is not a local folder, and only a local folder will do")
    return value


def _place(value: str) -> str:
    if value:
        parse_address(value)
    return value


def _url(value: str) -> str:
    require_url(value)
    return value


def _store_address(value: str) -> str:
    if value and "/" not in value and value not in (*STORES_OF_BEFORE, ".", "..", "~"):
        raise ValueError(
            f"{value!r} is neither a folder (./{value} is one) nor an address: "
            f"{', '.join(f'{scheme}://' for scheme in SCHEMES)}"
        )
    return _place(value)


def _bearer_token(value: SecretStr) -> SecretStr:
    if not all("!" <= character <= "~" for character in value.get_secret_value()):
        raise ValueError("only visible ASCII characters, and no spaces, can stand in an Authorization header")
    return value


def _alert_names(value: str) -> str:
    if unknown := [kind for kind in value.split(",") if kind.strip() not in ALERTS]:
        raise ValueError(f"{', '.join(unknown)} is not one of {', '.join(ALERTS)}")
    return value


def _email_addresses(value: str) -> str:
    for address in (part.strip() for part in value.split(",")):
        if not re.fullmatch(EMAIL_ADDRESS, address, re.ASCII):
            raise ValueError(f"{address!r} is not an address: name@example.com, with commas between several")
    return value


def _smtp_url(value: SecretStr) -> SecretStr:
    form = "must be smtp://user:password@host:587 or smtps://host:465; signs of passwords such as @ as %40"
    try:
        found = urlsplit(value.get_secret_value())
        if found.scheme not in SMTP_PORTS or not found.hostname or found.port == 0:
            raise ValueError(form)
    except ValueError:  # of a port that is no number, too; its message may hold the password
        raise ValueError(form) from None
    login = unquote(found.username or ""), unquote(found.password or "")
    if bool(login[0]) != bool(login[1]):
        raise ValueError(f"has a user without a password, or the reverse; {form}")
    if not all(part.isascii() and part.isprintable() for part in login):
        raise ValueError(f"has signs in its login that mail servers do not take: only visible ASCII; {form}")
    sender = unquote(found.query.removeprefix("from="))
    if found.query and (not found.query.startswith("from=") or not re.fullmatch(EMAIL_ADDRESS, sender, re.ASCII)):
        raise ValueError("may end with ?from=name@example.com, and with nothing else")
    return value


def _cron(value: str) -> str:
    try:
        import dagster as dg  # only where a schedule is set: a store or a service needs no Dagster
    except ModuleNotFoundError:
        return value  # the environment of the service, which has no schedules

    try:
        dg.ScheduleDefinition(name="schedule", cron_schedule=value, job_name="job")
    except dg.DagsterInvalidDefinitionError:
        raise ValueError(f"{value!r} is not a cron schedule such as '0 3 * * 0'") from None
    return value


def _timezone(value: str) -> str:
    from zoneinfo import ZoneInfo

    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"{value!r} is not an IANA time zone such as 'Europe/Berlin'") from None
    return value


LocalFolder = Annotated[str, AfterValidator(_local_folder)]
Place = Annotated[str, AfterValidator(_place)]
"""A folder, or the address of a bucket."""
StoreAddress = Annotated[str, AfterValidator(_store_address)]
Url = Annotated[str, AfterValidator(_url)]
"""An address without a password in it."""
BearerToken = Annotated[SecretStr, AfterValidator(_bearer_token)]
EmailAddresses = Annotated[str, AfterValidator(_email_addresses)]
SmtpUrl = Annotated[SecretStr, AfterValidator(_smtp_url)]
AlertNames = Annotated[str, AfterValidator(_alert_names)]
Cron = Annotated[str, AfterValidator(_cron)]
TimeZone = Annotated[str, AfterValidator(_timezone)]
