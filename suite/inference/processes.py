"""Processes that begin with libraries loaded already, where the system can fork."""

import multiprocessing
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext


def fork_context(preload: Sequence[str]) -> "ForkServerContext | SpawnContext":
    """Where processes are forked from one that has loaded the modules `preload`; on
    Windows, which cannot fork, each loads them itself."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(preload))
    return server
