"""Values of options that several commands have."""

import argparse
import sys
from datetime import timedelta


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    if not text.isdecimal() or not 1 <= int(text) <= sys.maxsize:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def days(text: str) -> timedelta:
    """Return so many days, not negative."""
    try:
        days = timedelta(days=float(text))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"must be a number of days, not {text!r}") from None
    if days < timedelta(0):
        raise argparse.ArgumentTypeError(f"must not be negative, but is {text!r}")
    return days
