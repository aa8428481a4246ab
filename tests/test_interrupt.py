import os
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from suite.interrupt import NOTED, Deadline, Interruption, TimeIsUp, end_on_signals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Put back what a process does that has lost its terminal: it does not hear of that again."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit), (signal.SIGHUP, SystemExit)],
)
def test_a_signal_waits_until_it_is_delivered(number: int, error: type[BaseException]) -> None:
    reached = []

    def work() -> None:
        with Interruption() as interruption:
            os.kill(os.getpid(), number)
            reached.append(interruption.pending)
            interruption.deliver()

    with pytest.raises(error) as caught:
        work()
    assert reached == [True]
    if error is SystemExit:
        assert caught.value.code == 128 + number


def test_a_second_signal_does_not_wait() -> None:
    def work() -> None:
        with Interruption():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the second signal was held back")

    with pytest.raises(KeyboardInterrupt):
        work()


def test_a_signal_that_the_work_never_saw_is_delivered_at_its_end() -> None:
    done = []

    def work() -> None:
        with Interruption():
            os.kill(os.getpid(), signal.SIGINT)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [True]


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    threads = threading.active_count()
    with Interruption() as interruption:
        assert not interruption.pending
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads


def test_the_end_of_a_terminal_ends_a_process_unless_it_was_told_to_ignore_it() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    end_on_signals()
    os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    end_on_signals()
    with pytest.raises(SystemExit) as caught:
        os.kill(os.getpid(), signal.SIGHUP)
    assert caught.value.code == 129
    os.kill(os.getpid(), signal.SIGHUP)  # as the shell ends, while this one clears away


def test_the_end_of_a_terminal_is_told_twice_and_the_work_still_ends_in_good_order() -> None:
    reached = []

    def work() -> None:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
            reached.append(interruption.pending)
            interruption.deliver()

    with pytest.raises(SystemExit):
        work()
    assert reached == [True]
    os.kill(os.getpid(), signal.SIGHUP)


@pytest.mark.parametrize(
    ("numbers", "answers"),
    [((signal.SIGINT, signal.SIGINT), [NOTED]), ((signal.SIGINT,), [NOTED]), ((signal.SIGTERM,), [])],
)
def test_the_first_ctrl_c_alone_is_answered_and_sigterm_never(numbers: tuple[int, ...], answers: list[str]) -> None:
    said: list[str] = []

    def work() -> None:
        with Interruption(say=said.append):
            for number in numbers:
                os.kill(os.getpid(), number)

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        work()
    assert said == answers


def test_a_signal_that_the_process_ignores_stays_ignored() -> None:
    """Of a worker, which Ctrl-C reaches too: the SIGTERM of its parent is then the first signal, and waits."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert not interruption.pending
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def deadline(seconds: float) -> Deadline:
    return Deadline(datetime.now(UTC) + timedelta(seconds=seconds))


def test_the_end_of_the_time_is_pending_and_is_no_failure() -> None:
    with Interruption(deadline(-1)) as interruption:
        assert interruption.pending
    # Work that was done before anybody looked is done; only a signal would still be delivered here.
    assert not Interruption(deadline(60)).pending
    with pytest.raises(TimeIsUp):
        interruption.deliver()
    assert not issubclass(TimeIsUp, Exception)


def test_a_signal_comes_before_the_end_of_the_time_and_is_not_taken_for_the_second() -> None:
    reached = []

    def work() -> None:
        with Interruption(deadline(-1)) as interruption:
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append(True)
            interruption.deliver()

    with pytest.raises(SystemExit):
        work()
    assert reached == [True]
