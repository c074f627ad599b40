"""Tables for the README."""

from collections.abc import Iterable


def print_table(header: list[str], rows: Iterable[Iterable[object]]) -> None:
    """In Markdown, on standard output."""
    for row in [header, ["---"] * len(header), *rows]:
        print("| " + " | ".join(map(str, row)) + " |")
