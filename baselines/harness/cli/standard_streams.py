"""Standard output and standard error, which may be closed, full, or read by nobody any more."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

__all__ = ["failed", "prepared"]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READER_GONE = 141  # what a shell reports of a command that SIGPIPE has ended


@contextmanager
def prepared() -> Iterator[None]:
    """Run a command within a block, whatever its standard streams are.

    What is printed to a closed one goes nowhere; a character that the encoding lacks, such as ±,
    becomes a question mark.

    Raises:
        SystemExit: 141 where a reader has gone, as that of ``| head``, in silence; 1 where standard
            output cannot be written for another reason, after one line.

    """
    with ExitStack() as stack:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:
                setattr(sys, name, stack.enter_context(open(os.devnull, "w")))
                stack.callback(setattr, sys, name, None)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        try:
            yield
            sys.stdout.flush()
        except BrokenPipeError:
            _discard()
            raise SystemExit(READER_GONE) from None
        except OSError as error:
            with suppress(OSError):
                print(f"cflows: standard output: {error.strerror or error}", file=sys.stderr)
            _discard()
            raise SystemExit(1) from None
        except SystemExit:
            try:
                sys.stdout.flush()
            except OSError:  # what there was to say of it, a line has said
                _discard()
            raise


def failed(error: Exception) -> bool:
    """Whether an error is that of a standard stream, or of a pipe that nobody reads any more.

    That of a file names it.
    """
    full = isinstance(error, OSError) and error.errno in FULL and error.filename is None
    return full or isinstance(error, BrokenPipeError)


def _discard() -> None:
    """Let what is still buffered go nowhere: the interpreter would complain of it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # one that is no file of the system's
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
