"""Convert an exception that ends a command into one message and an exit code."""

from __future__ import annotations

import errno

REFUSED = 2
FAILED = 1
INTERRUPTED = 130

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


def explain(error: BaseException, command: str) -> tuple[str, int]:
    """The message and the exit code of an exception; `command` is the user's command line, which resumes the work."""
    # First, because with a package of the same name the project's own exceptions cannot be imported.
    if isinstance(error, ImportError):
        return f"cannot start: {error}", REFUSED
    if isinstance(error, KeyboardInterrupt):
        return f"stopped at once: finished work is kept, the current step is lost. Resume with: {command}", INTERRUPTED
    if isinstance(error, OSError):
        path = error.filename or "a file"
        if error.errno in _NO_SPACE:
            return f"no space left for {path}; free some and run the same command again: finished work is kept", FAILED
        if error.errno in _NOT_ALLOWED:
            return f"cannot use {path}: {error.strerror}; choose a path that you may write to", REFUSED
        return f"cannot use {path}: {error.strerror or error}", FAILED

    from pydantic import ValidationError

    from pipeline.runtime.signals import StoppedBySignal
    from shards.core.errors import Failed, Refused

    if isinstance(error, StoppedBySignal):
        action = "Resume with" if error.resumable else "Start again with"
        return f"stopped: {str(error).rstrip('.')}. {action}: {command}", error.exit_code
    if isinstance(error, Refused):
        return str(error), REFUSED
    if isinstance(error, Failed):
        return str(error), FAILED
    if isinstance(error, ValidationError):
        from pipeline.config.keys import describe_errors

        return describe_errors(error), REFUSED
    return (
        f"unexpected {type(error).__name__}: {error}. This is a bug in tokenleap; "
        "`tokenleap --debug` before the same command prints the traceback",
        FAILED,
    )
