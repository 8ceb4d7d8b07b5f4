"""What Ctrl-C does to a command: while the program is imported it ends it without a word, from then on it raises.

Among imports there is nothing to undo or to tell, and a KeyboardInterrupt would be a traceback. Imports little itself.
"""

import _thread
import os
import signal
import sys
from types import FrameType


def ends_at_once() -> None:
    """From now on Ctrl-C ends the process; unless it is ignored, as in a job in the background."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def raises() -> bool:
    """From now on Ctrl-C raises KeyboardInterrupt where it ended the process; whether it did."""
    if signal.getsignal(signal.SIGINT) is not _leave:
        return False
    sys.unraisablehook = _again
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return True


def _leave(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)  # as shells tell of an end by a signal


def _again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Sends a Ctrl-C again that was raised where Python drops what is raised: in a destructor, or within an import.

    By a thread, for what comes while this function runs would be dropped as well.
    """
    if unraisable.exc_type is KeyboardInterrupt:
        _thread.start_new_thread(os.kill, (os.getpid(), signal.SIGINT))
    else:
        sys.__unraisablehook__(unraisable)
