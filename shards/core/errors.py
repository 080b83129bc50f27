"""Exceptions that end a command: user errors, failures, and requested stops. Each has one message for the user."""

from __future__ import annotations

from collections.abc import Sequence

MAX_LISTED = 3
"""Items that a message lists; of more it says how many."""


class Refused(Exception):
    """The request is wrong; nothing was done. The command line exits with code 2."""


class Failed(Exception):
    """An error occurred during the work; finished work was kept. The command line exits with code 1."""


class Stopped(Exception):
    """A stop was requested. Finished work was kept, and the same command resumes."""


class OutOfTime(Stopped):
    """The time limit was reached. The command line exits as after SIGTERM."""


class OtherStopped(Stopped):
    """Another process of the same work received a request to stop. The command line exits as after SIGTERM."""


def join_first(items: Sequence[str]) -> str:
    """The first items of a list for a message, and how many more there are."""
    more = [f"and {len(items) - MAX_LISTED} more"] if len(items) > MAX_LISTED else []
    return "; ".join([*items[:MAX_LISTED], *more])
