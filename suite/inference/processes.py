"""Processes for what this one must not do: they are forked with libraries loaded, or
load libraries that are gone when they end."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext
    from multiprocessing.process import BaseProcess


def fork_context(preload: Sequence[str]) -> "ForkServerContext | SpawnContext":
    """Where processes are forked from one that has loaded the modules `preload`; on
    Windows, which cannot fork, each loads them itself."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(preload))
    return server


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """What is started within does not hear Ctrl-C, which reaches all processes of a
    terminal: not even while it imports, before it can have itself ignore the signal.
    This process hears one that came meanwhile when that is over."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # which would have the signal heard again as it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start(process: "BaseProcess", context: "ForkServerContext | SpawnContext") -> None:
    """Start a process of `fork_context` that does not hear Ctrl-C."""
    with deaf_to_ctrl_c():
        if context.get_start_method() == "spawn":
            process.start()
            return
        from multiprocessing import forkserver

        forkserver.ensure_running()
    process.start()  # which waits for what the server loads


class PipedProcess:
    """A process that answers questions over a pipe, one after the other, until it is
    closed.

    Args:
        context: that starts it, as `fork_context` gives it.
        work: called there with its end of a pipe, from which it receives questions and
            to which it sends a dict for each; one with "error" says in a line what went
            wrong.
        arguments: that `work` takes after the pipe.
    """

    def __init__(self, context: "ForkServerContext | SpawnContext", work: Callable[..., None], *arguments: Any) -> None:
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(work, theirs, *arguments), daemon=True)
        start(self._process, context)
        theirs.close()

    def wait(self) -> dict[str, Any]:
        """The next thing that it sends; RuntimeError if it fails."""
        try:
            answer: dict[str, Any] = self._pipe.recv()
        except (EOFError, OSError):
            raise RuntimeError("the process ended without an answer") from None
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def ask(self, question: Any) -> dict[str, Any]:
        """The answer to a question; RuntimeError if it fails."""
        with suppress(OSError):  # its last words say why
            self._pipe.send(question)
        return self.wait()

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _work(work: Callable[..., None], *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the caller answers it
    work(*arguments)
