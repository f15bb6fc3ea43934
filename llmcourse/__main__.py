"""`python -m llmcourse`, as the command `llmcourse`: Ctrl-C ends it with 130 before and after a command.

And while something is imported, which with PyTorch takes a second or more. In between the command sees to it,
or `cli.main`: a server's own end is 0, and grading first finishes what it has in hand.
"""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
IMPORTS = "<frozen importlib"  # how the files of what imports begin


def main() -> int:
    """Runs the command that the arguments name; returns its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a background shell ignores it
        signal.signal(signal.SIGINT, _interrupted)
    try:
        from llmcourse.cli import main as run

        return run()
    except KeyboardInterrupt:
        _leave()


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Raises where `main` can catch it, and not out of an import: there C code may lose the exception."""
    while frame is not None and not frame.f_code.co_filename.startswith(IMPORTS):
        if frame.f_code is main.__code__:
            raise KeyboardInterrupt
        frame = frame.f_back
    _leave()


def _leave() -> NoReturn:
    """Ends the process at once: nothing was begun that has to be put away, or all of it was."""
    os.write(2, b"\n")  # the prompt that follows begins a line
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
