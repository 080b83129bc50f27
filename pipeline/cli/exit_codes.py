"""From an exception to what a person is told: one message and an exit code."""

from __future__ import annotations

import errno

REFUSED = 2
FAILED = 1
INTERRUPTED = 130

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


def explain(error: BaseException, command: str) -> tuple[str, int]:
    """The message and the exit code of an exception that ends a command.

    Args:
        error: what was raised.
        command: the command line as it was given; the way to go on after a stop.
    """
    # Before the project's own classes are imported: with a name clash there is no importing them.
    if isinstance(error, ImportError):
        return f"cannot start: {error}", REFUSED
    if isinstance(error, KeyboardInterrupt):
        return (
            f"stopped at once; what was finished is kept, the step under way is lost. Go on with: {command}",
            INTERRUPTED,
        )
    if isinstance(error, OSError):
        return _explain_system(error)

    from pydantic import ValidationError

    from pipeline.runtime.signals import StoppedBySignal
    from shards.core.errors import Failed, Refused

    if isinstance(error, StoppedBySignal):
        way = "Go on with" if error.resumable else "Begin again with"
        return f"stopped: {str(error).rstrip('.')}. {way}: {command}", error.exit_code
    if isinstance(error, Refused):
        return str(error), REFUSED
    if isinstance(error, Failed):
        return str(error), FAILED
    if isinstance(error, ValidationError):
        from pipeline.config.keys import describe_errors

        return describe_errors(error), REFUSED
    return (
        f"unexpected {type(error).__name__}: {error}. This is a mistake in tokenleap; "
        "the same command with `tokenleap --debug` in front shows where",
        FAILED,
    )


def _explain_system(error: OSError) -> tuple[str, int]:
    where = error.filename or "a file"
    if error.errno in _NO_SPACE:
        return (
            f"no space left for {where}; free some and give the same command again: finished work is kept",
            FAILED,
        )
    if error.errno in _NOT_ALLOWED:
        return f"cannot use {where}: {error.strerror}; choose a place that you may write to", REFUSED
    return f"cannot use {where}: {error.strerror or error}", FAILED
