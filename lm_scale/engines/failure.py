"""What a run that fails leaves: an event by the rank that failed, the header's status, one line on the terminal."""

from __future__ import annotations

import traceback

from lm_scale.arguments import EXIT_FAILED, EXIT_INTERRUPTED
from lm_scale.engines.session import Session
from lm_scale.records import read

OUT_OF_MEMORY = ("out of memory", "not enough memory", "Cannot allocate memory")


def record_failure(session: Session, error: BaseException) -> int:
    """Record `error`, say it unless another rank has, and return the exit status.

    When one rank fails the others fail in their next collective. The first error is the cause; only it is said.
    """
    traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        session.end("interrupted")
        return EXIT_INTERRUPTED
    reason = f"{type(error).__name__}: {error}".strip().splitlines()[0].rstrip(": ")
    is_cause = read(session.run_dir).first_error() is None
    status = (
        "oom" if isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY) else "crashed"
    )
    session.writer.append("event", event="error", rank=session.launch.process.rank, message=reason, status=status)
    cause = read(session.run_dir).first_error() or {"message": reason}
    session.update(last_error=cause["message"])
    session.end(cause.get("status", status))
    if is_cause:
        line = f"error: {session.run_dir.name}: {status}: {reason}; see {session.run_dir / 'log.txt'}"
        print(line, file=session.launch.capture.terminal, flush=True)
    return EXIT_FAILED
