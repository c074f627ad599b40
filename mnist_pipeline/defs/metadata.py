"""Metadata values that people look at."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from mnist_pipeline.files.folders import printable
from mnist_pipeline.files.pictures import preview
from mnist_pipeline.task.spec import TaskSpec

LISTED_FILES = 5
"""More are counted only: the event log keeps them for ever, twice."""

LONGEST_TEXT = 80
"""The characters of a name or a reason in a list."""


PICTURE_BYTES = 3500
"""The event log keeps two copies of all metadata for ever: an asset shows one or two pictures of this size. What takes
more to be read is in the card of a version, or beside the values."""


def picture(png: bytes, alternative_text: str, most_bytes: int = PICTURE_BYTES) -> dg.MarkdownMetadataValue:
    """Return a small copy of a PNG inside the metadata itself, so that it is seen wherever the event log is."""
    content = base64.b64encode(preview(png, most_bytes)).decode()
    return dg.MetadataValue.md(f"![{alternative_text}](data:image/webp;base64,{content})")


def left_out(found: Mapping[str, str]) -> "dict[str, dg.RawMetadataValue]":
    """Return how many files of a folder do not count, and which and why; nothing where all do."""
    if not found:
        return {}
    listed = list(found.items())[:LISTED_FILES]
    rows = [{"file": short(printable(name)), "reason": short(why)} for name, why in listed]
    return {"files_left_out": len(found), "left_out": table(rows)}


def short(text: str) -> str:
    """Return the end of a text, which tells more of a path than its beginning."""
    return text if len(text) <= LONGEST_TEXT else f"...{text[3 - LONGEST_TEXT :]}"


def class_table(spec: TaskSpec, columns: Mapping[str, Sequence[int]]) -> dg.TableMetadataValue:
    """Return a table with a row a class: its label, its name, and its number in each column."""
    return table(
        [
            {"label": label, "class": name, **{column: values[label] for column, values in columns.items()}}
            for label, name in enumerate(spec.class_names)
        ]
    )


def table(rows: Sequence[dict[str, Any]]) -> dg.TableMetadataValue:
    """Return rows of equal keys as a table, fractions to four places; the stored record keeps them all."""
    rounded = [{key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()} for row in rows]
    return dg.MetadataValue.table([dg.TableRecord(row) for row in rounded])
