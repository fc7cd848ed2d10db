"""A copy of this process that computes items for it, one after the other."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Generic, TypeVar, cast

from ..errors import WhisperError

Item = TypeVar("Item")
_SIGNAL_ON_PARENTS_DEATH = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


class Fork(Generic[Item]):
    """A forked copy of this process. It has the same objects, and changes to them are not seen here.

    Only the calling thread is copied, so no other thread may be at work in FFmpeg then. The copy ends when this process does.
    """

    def __init__(self, items: Callable[[], Iterator[Item]], keep: Sequence[int] = ()) -> None:
        """`items` runs in the copy, which waits while its last item has not been taken. `keep`: the descriptors that it needs.

        Raises OSError when no process can be made.
        """
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        try:
            self._pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if self._pid == 0:
            _compute(items, Connection(theirs.detach()), keep, parent)
        theirs.close()
        self._connection = Connection(ours.detach())

    def next(self) -> Item | None:
        """The next item; None when there is none, or when the copy has failed or crashed."""
        try:
            return cast(Item, self._connection.recv())
        except (EOFError, OSError):
            return None

    def close(self) -> None:
        """End the copy. Closing twice is harmless. A thread in `next` gets None."""
        # the connection stays open until nothing refers to it: the thread in `next` may be reading from it
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            self._pid = 0


def _compute(items: Callable[[], Iterator[Item]], connection: Connection, keep: Sequence[int], parent: int) -> None:
    """Send the items, and end this process without what Python does at its end, which belongs to the process that was copied."""
    try:
        ctypes.CDLL(None).prctl(_SIGNAL_ON_PARENTS_DEATH, signal.SIGKILL)
        # the others would keep recordings in memory that have been closed since, and connections
        kept = sorted({0, 1, 2, connection.fileno(), *keep})
        for low, high in pairwise([*kept, os.sysconf("SC_OPEN_MAX")]):
            os.closerange(low + 1, high)
        if os.getppid() == parent:
            for item in items():
                connection.send(item)
    except (OSError, WhisperError):  # the other side needs no more items, or finds the same error itself
        pass
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(0)
