"""In the parent: calling functions on behalf of a child."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from ._loop_end import LoopEnd
from ._loop_poller import loop_poller
from ._loops import EventLoop, loop_context, post, post_in
from ._platform import ParentWire
from ._served_calls import ServedCalls
from ._wire._framing import BadFrameError, FrameKind, Section
from ._wire._outcomes import Outcome, Value, exception_message, failure_message, value_message
from ._wire._payloads import TooHeavyError
from ._wire._requests import (
    Message,
    MessageReader,
    awaits,
    check_request,
    decode_request,
    encode_reply,
    encode_unavailable,
    encode_value,
    is_heavy,
    number_of,
)
from ._worker_threads import WorkerThreads


class RequestServer:
    """Calls functions in the event loop that started a process, on behalf of that process.

    They run in the context of the task that started it, async ones in a task each; these are over
    before the process is said to be.

    :param send: sends a reply over the wire of the process, from any thread
    """

    def __init__(
        self, loop: EventLoop, threads: WorkerThreads, send: Callable[[bytes], object]
    ) -> None:
        self._loop = loop
        self._context = loop_context(loop)
        self._threads = threads
        self._send_over_wire = send
        self._line: ParentWire | None = None
        self._loop_end: LoopEnd | None = None
        self._messages = MessageReader()
        self._calls: ServedCalls[int] = ServedCalls(loop)
        self._loading: set[int] = set()  # numbers of requests that a thread unpickles
        self._closed = False

    # --- from the watcher -----------------------------------------------------------------------

    def open_line(self, sock: socket.socket) -> None:
        """The process has opened a line to the event loop."""
        if not post(self._loop, lambda: self._attach(sock)):
            sock.close()

    def receive(self, section: Section) -> None:
        """Take in what came over the wire, where there are no lines.

        :raises BadFrameError: if it is no request
        """
        for message in MessageReader().feed(b"".join(section)):
            check_request(message)
            self._receive(message)

    def _receive(self, message: Message) -> None:
        if not self._post(lambda: self._serve(message)):
            self._send_over_wire(encode_unavailable(number_of(message)))

    def close(self) -> None:
        """The process has ended."""
        self._closed = True
        if (self._calls or self._line is not None) and not self._post(self._stop_serving):
            line, self._line = self._line, None
            if line is not None:
                line.forget()  # the event loop is closed, and waits for nothing

    def forget(self) -> None:
        """In a fork of this process: close our copy of what belongs to the parent."""
        if self._line is not None:
            self._line.forget()

    # --- in the event loop ----------------------------------------------------------------------

    async def wait_over(self) -> None:
        """Wait until nothing runs on behalf of the process, which has ended."""
        if self._calls:
            self._closed = True
            self._close_line()
            await self._calls.wait_over()

    def _attach(self, sock: socket.socket) -> None:
        if self._closed or self._line is not None:
            sock.close()
            return
        make: Any = ParentWire  # of sockets, as there are lines
        self._line = line = make(sock)
        self._loop_end = LoopEnd(self._close_line)  # or the process would wait for ever
        line.attach(loop_poller(self._loop), self._receive_line)

    def _receive_line(self, data: bytes) -> None:
        try:
            for message in self._messages.feed(data):
                check_request(message)
                self._context.run(self._serve, message)
        except BadFrameError:
            data = b""  # of no use any more, which the child sees when it is closed
        if not data:
            self._close_line()

    def _close_line(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()
            if self._loop_end is not None:
                self._loop_end.forget()

    def _serve(self, message: Message) -> None:
        if message[0] == FrameKind.WITHDRAWN:
            self._loading.discard(number_of(message))
            self._calls.cancel(number_of(message))
        elif is_heavy(message):
            self._loading.add(number_of(message))
            self._in_thread(lambda: self._load(message))
        else:
            self._load(message)

    def _load(self, message: Message) -> None:
        """Unpickle a request; in a thread where that takes long."""
        try:
            func, args = decode_request(message)
        except BaseException as error:
            failure = failure_message(FrameKind.BAD_CALL, error)
            reply = encode_reply(number_of(message), failure)
            self._post(lambda: self._refuse(message, reply))
            return
        if is_heavy(message):
            self._post(lambda: self._call_loaded(message, func, args))
        else:
            self._call(message, func, args)

    def _refuse(self, message: Message, reply: bytes) -> None:
        self._loading.discard(number_of(message))
        self._reply(reply)

    def _call_loaded(
        self, message: Message, func: Callable[..., Any], args: tuple[Any, ...]
    ) -> None:
        if number_of(message) in self._loading:  # not withdrawn meanwhile
            self._loading.remove(number_of(message))
            self._call(message, func, args)

    def _call(self, message: Message, func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if not self._closed:
            self._calls.call(number_of(message), func, args, self._settle, awaits=awaits(message))

    def _settle(self, number: int, outcome: Outcome) -> None:
        if isinstance(outcome, Value):
            self._reply_value(number, outcome.value)
        else:
            self._reply(encode_reply(number, exception_message(outcome.exception)))

    def _stop_serving(self) -> None:
        self._close_line()
        self._calls.cancel_all()

    # --- from any thread ------------------------------------------------------------------------

    def _post(self, callback: Callable[[], object]) -> bool:
        return post_in(self._loop, self._context, callback)

    def _reply_value(self, number: int, value: object) -> None:
        try:
            reply = encode_value(number, value)
        except TooHeavyError:
            self._in_thread(
                lambda: self._reply_from_thread(encode_reply(number, value_message(value)))
            )
        except BaseException:
            self._reply(encode_reply(number, value_message(value)))  # which says why
        else:
            self._reply(reply)

    def _reply_from_thread(self, reply: bytes) -> None:
        self._post(lambda: self._reply(reply))

    def _reply(self, reply: bytes) -> None:
        if self._line is None:
            self._send_over_wire(reply)
        else:
            self._line.send_at_once(reply)

    def _in_thread(self, work: Callable[[], None]) -> None:
        try:
            self._threads.submit(work)
        except RuntimeError:  # no thread, and none to be had
            work()
