"""Requests to stop, in a process that hears of them in a thread."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from support import TIMEOUT

from creche import StopRequested, _stop_request
from creche._stop_request import StopListener


class Listener(StopListener):
    """Has a thread that asks, and which can be held up at its most delicate moment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        asker: Any = threading.Thread(target=self._request_from_thread)
        asker.enable = asker.disable = lambda: None
        self._thread = asker
        self.about_to_raise = threading.Event()
        self.go_on = threading.Event()
        original = _stop_request.raise_in_main_thread

        def raise_late(exception: type[BaseException]) -> None:
            self.about_to_raise.set()
            assert self.go_on.wait(TIMEOUT)
            original(exception)

        monkeypatch.setattr(_stop_request, "raise_in_main_thread", raise_late)

    def ask(self) -> Any:
        """Ask to stop, in the thread."""
        asker: Any = self._thread
        asker.start()
        return asker


def test_thread_that_is_about_to_raise_when_a_block_defers_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It strikes before the block, never in it."""
    listener = Listener(monkeypatch)
    entered = False

    def wait() -> None:
        nonlocal entered
        asker = listener.ask()
        assert listener.about_to_raise.wait(TIMEOUT)
        threading.Timer(0.05, listener.go_on.set).start()
        with listener.deferring():
            entered = True
            asker.join(TIMEOUT)
            time.sleep(0)

    with pytest.raises(StopRequested), listener.raising():
        wait()
    assert not entered
    assert listener.requested


def test_request_in_a_block_that_defers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised at the end of the block, in the main thread."""
    listener = Listener(monkeypatch)
    steps = []
    with pytest.raises(StopRequested), listener.raising():
        with listener.deferring():
            listener.ask().join(TIMEOUT)
            steps.append("in the block")
        steps.append("behind it")
    assert steps == ["in the block"]
    assert not listener.about_to_raise.is_set()
