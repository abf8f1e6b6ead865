"""The wall clock in words, for people and files; never for arithmetic."""

from __future__ import annotations

from datetime import datetime, timezone


def utc_now() -> str:
    """To the second, as ISO 8601 has it: 2026-11-21T17:00:00+00:00."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def utc_stamp() -> str:
    """To the microsecond, fit for a file name, sorted by time: 20261121T170000.000000Z."""
    return datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
