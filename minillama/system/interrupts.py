"""Requests to stop: Ctrl-C, SIGTERM (`kill`, a machine that shuts down) and SIGHUP (a terminal that closes).

A run answers the first request by finishing its step and saving; a second request stops it at once. A signal that
the caller had ignored (SIGHUP under `nohup`) stays ignored. Windows has no SIGHUP.
"""

import contextlib
import os
import signal
import threading
import time

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
REPEAT_SECONDS = 0.5  # a launcher and its group are often told together: the program then hears one request twice
_heard: dict[int, float] = {}  # when each signal came last, in seconds of the monotonic clock


class Interrupted(KeyboardInterrupt):
    """A run that stopped because of Ctrl-C. `done`: how far it came; `folder`: where that is saved, None if nowhere;
    `signal`: the number of the signal. The text is for callers of the library; commands name their own flags."""

    def __init__(self, done="", folder=None, number=signal.SIGINT):
        super().__init__(done)
        self.done, self.folder, self.signal = done, folder, number

    def __str__(self):
        return self.done + (f", saved in {self.folder}: resume=True goes on" if self.folder else "")


class Terminated(SystemExit):
    """The same for SIGTERM and SIGHUP: a program that does not catch it ends with 128 + the signal's number, as shells
    have it, and leaves its temporary folders in order."""

    def __init__(self, done="", folder=None, number=signal.SIGTERM):
        super().__init__(128 + number)
        self.done, self.folder, self.signal = done, folder, number

    __str__ = Interrupted.__str__


class Request:
    """Whether a request to stop has come, and by which signal."""

    number = None

    def __bool__(self):
        return self.number is not None

    def stop(self, done, folder=None):
        """The exception that ends a run which has come so far."""
        number = self.number or signal.SIGINT  # another process of the group was asked
        return (Interrupted if number == signal.SIGINT else Terminated)(done, folder, number)


@contextlib.contextmanager
def stop_requested():
    """A `Request` that the first signal fills instead of breaking off mid-step; the second is handled as it was
    before. Outside the main thread, which alone may handle signals, it stays empty."""
    request, before = Request(), {}

    def on_signal(number, frame):
        if _is_repeat(number):
            return
        if request:
            _put_back(before)
            signal.raise_signal(number)
        request.number = number

    with _handling(SIGNALS, on_signal, before):
        yield request


@contextlib.contextmanager
def raise_on_signals():
    """Inside, SIGTERM and SIGHUP raise `Terminated`, so that temporary files are removed on the way out."""
    def on_signal(number, frame):
        if not _is_repeat(number):
            raise Terminated(number=number)

    with _handling([number for number in SIGNALS if number != signal.SIGINT], on_signal, {}):
        yield


@contextlib.contextmanager
def _handling(numbers, handler, before):
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not Python's to give back
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        _put_back(before)


def _put_back(before):
    while before:
        signal.signal(*before.popitem())


def _is_repeat(number):
    """Whether this signal is the last one once more. A program started by run.py or torchrun hears twice of one
    request: they pass on what they are told, and a closing terminal or `timeout` tells the whole group."""
    launched = os.environ.get("MINILLAMA_LAUNCHER") == str(os.getppid()) or "TORCHELASTIC_RUN_ID" in os.environ
    now, earlier = time.monotonic(), _heard.get(number, -REPEAT_SECONDS)
    _heard[number] = now
    return launched and now - earlier < REPEAT_SECONDS
