"""Several processes of this machine that work on one grid, each with its share of the
cores or a GPU of its own."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import psutil

from suite import env
from suite.errors import InputError
from suite.files import printable
from suite.inference.processes import deaf_to_ctrl_c
from suite.interrupt import HANGUP


@contextmanager
def start_workers(count: int, work: Callable[[Any], None], options: Any) -> Iterator[Callable[[], bool]]:
    """Have `count` processes call `work(options)`; yields what says whether any is
    still at it.

    At the end those that are left are told to stop, as by SIGTERM, and waited for. On
    Windows, which has no such signal, they end at once.
    """
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_run, args=(work, options, index, count), name=f"worker {index + 1}")
        for index in range(count)
    ]
    with deaf_to_ctrl_c():
        for process in processes:
            process.start()
    try:
        yield lambda: any(process.is_alive() for process in processes)
    except KeyboardInterrupt:
        print("interrupted: the workers finish their steps, for checkpoints; again to stop now", file=sys.stderr)
        raise
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _run(work: Callable[[Any], None], options: Any, index: int, count: int) -> None:
    # Ctrl-C and the end of a terminal reach all processes of it; the parent alone answers, and tells its workers once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if HANGUP is not None:
        signal.signal(HANGUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    _take_share(index, count)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(options)
    except InputError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        sys.exit(2)


def _take_share(index: int, count: int) -> None:
    """Keep to this worker's cores, and to its GPU where there are any."""
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):
        cores = env.usable_cores()[: env.available_cores()]
        each = max(1, len(cores) // count)
        first = index * each % len(cores)
        process.cpu_affinity(cores[first : first + each])
    gpus = env.gpus()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]


def _stop(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _end_with_parent() -> None:
    """Stop when the parent has gone without a word."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
