"""What happens within a process that times."""

import threading
import time

from suite import timing
from suite.timing import Protocol

SHORT = Protocol(rounds=2, min_seconds=0.0, min_runs=5, max_runs=50, warmup=1)


def test_a_process_answers_when_its_threads_no_longer_spin() -> None:
    end = time.perf_counter() + 0.2

    def spin() -> None:
        while time.perf_counter() < end:
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    timing.fall_asleep()
    assert not thread.is_alive()
    assert time.perf_counter() < end + timing.SPIN


def test_a_burst_stops_on_time_and_on_count() -> None:
    calls: list[int] = []
    assert len(timing.burst(calls.append, SHORT)) == 5
    assert calls == [0, 0, 1, 2, 3, 4]  # the first is not counted
    endless = Protocol(rounds=1, min_seconds=60.0, min_runs=7, max_runs=50, warmup=0)
    assert len(timing.burst(calls.append, endless)) == 50


def test_inputs_vary_from_run_to_run() -> None:
    calls: list[int] = []
    timing.burst(calls.append, SHORT)
    assert len({index % timing.DISTINCT_INPUTS for index in calls}) == timing.DISTINCT_INPUTS
