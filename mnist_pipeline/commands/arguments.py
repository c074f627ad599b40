"""Values of options that several commands have."""

import argparse
import sys
from datetime import timedelta

CENTURY = timedelta(days=36525)


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    if not text.isdecimal() or not 1 <= int(text) <= sys.maxsize:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def days(text: str) -> timedelta:
    """Return so many days, at most a century."""
    try:
        days = timedelta(days=float(text))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"must be a number of days, not {text!r}") from None
    if not timedelta(0) <= days <= CENTURY:
        raise argparse.ArgumentTypeError(f"must be 0 to {CENTURY.days} days, but is {text!r}")
    return days
