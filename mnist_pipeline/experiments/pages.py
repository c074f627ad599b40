"""Pages that stand by themselves: one HTML file each, with all that it shows, for the store, a mail, or a browser."""

import base64
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> bytes:
    """Return a template with its values, which are escaped; a name that is missing is an error."""
    return _environment().get_template(template).render(**values).encode()


def inline(png: bytes) -> str:
    """Return a picture as a page holds it."""
    return base64.b64encode(png).decode()


def script(name: str) -> Markup:
    """Return a script of `templates/` as a page holds it."""
    return Markup((TEMPLATES / name).read_text())  # of this project: nothing in it is anybody's input


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {"shown": _shown, "time": _time}
    return environment


def _shown(value: float, places: int) -> str:
    """A number as people read it; the page has it whole as well."""
    if isinstance(value, bool):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.{places}f}"


def _time(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if moment else "at an unknown time"
