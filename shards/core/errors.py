"""How work ends early: two kinds of failure and a wish, each with one message for the person who reads it."""

from __future__ import annotations


class Refused(Exception):
    """Asked for something wrong; nothing was done. The command line ends with exit code 2."""


class Failed(Exception):
    """Something broke on the way. The command line ends with exit code 1."""


class Stopped(Exception):
    """Asked to stop; what was finished is kept, and the same command goes on from there."""


class OutOfTime(Stopped):
    """The time that was given is used up. The command line ends as after SIGTERM."""


class OtherStopped(Stopped):
    """Another process of the same work was asked to stop. The command line ends as after SIGTERM."""
