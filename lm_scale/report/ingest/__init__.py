"""Formats that become rows, one file a format; `read(path)` gives the row of one run or raises `UnreadableError`."""

from __future__ import annotations


class UnreadableError(Exception):
    """A run cannot become a row. The text is one line and names the file."""
