"""What travels between a hub and the processes that use it, without I/O.

A request is a header and a body, and so is an answer. Bodies are empty, JSON, or an item of a
queue, which is a pickle that the hub hands on as it came. A client shows first that it knows the
hub's secret, and so does the hub, each without saying it.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import json
import secrets
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import anyio

from .._platform import HubAddress
from .._wire._framing import Buffer, Section

REQUEST = struct.Struct("<BQQQQ")  # operation, object, number, holder, bytes of the body
ANSWER = struct.Struct("<BQQ")  # what it is, number of the request, bytes of the body

# A body beyond this is none.
_MAX_BYTES = 1 << 48

_MAGIC = b"creche/1"
HELLO = struct.Struct("<8s16s32sQ")  # magic, nonce, proof, process id
WELCOME = struct.Struct("<8s32s")  # magic, proof


class Op(enum.IntEnum):
    """What a process wants of an object in another.

    From RELEASE on they are not answered.
    """

    ACQUIRE = 1
    TRY_ACQUIRE = 2
    WAIT = 3
    PUT = 4
    TRY_PUT = 5
    GET = 6
    TRY_GET = 7
    STATISTICS = 8
    CLAIM_END = 9
    RELEASE = 20
    SET = 21
    SET_TOTAL = 22
    ABORT = 23
    RESET = 24
    GOT = 25
    CLOSE = 26
    CANCEL = 27
    OPEN_END = 28
    CLOSE_END = 29
    HAND_OVER_END = 30
    TAKE_BACK_END = 31
    UNPICKLING = 32


class AnswerKind(enum.IntEnum):
    VALUE = 1
    ITEM = 2
    ERROR = 3


@dataclass(frozen=True, slots=True)
class HubRef:
    """How other processes find a hub. Knowing it is the right to use what the hub has.

    :param address: where it listens
    :param secret: what nobody else knows
    :param pid: of its process
    """

    address: HubAddress
    secret: bytes
    pid: int


class BadMessageError(ValueError):
    """The bytes are no message of a hub or its client."""


# --- who is there ---------------------------------------------------------------------------------


def make_hello(ref: HubRef, pid: int) -> tuple[bytes, bytes]:
    """Make a client's first message, and the one that must be the hub's."""
    nonce = secrets.token_bytes(16)
    hello = HELLO.pack(_MAGIC, nonce, _proof(ref.secret, b"client", nonce), pid)
    return hello, make_welcome(ref.secret, nonce)


def make_welcome(secret: bytes, nonce: bytes) -> bytes:
    return WELCOME.pack(_MAGIC, _proof(secret, b"hub", nonce))


def read_hello(hello: bytes, secret: bytes) -> tuple[int, bytes]:
    """Return the client's process id, and what it is to be answered.

    :raises BadMessageError: if it does not know the secret
    """
    magic, nonce, proof, pid = HELLO.unpack(hello)
    if magic != _MAGIC or not hmac.compare_digest(proof, _proof(secret, b"client", nonce)):
        raise BadMessageError("a process that does not know the secret has connected")
    return pid, make_welcome(secret, nonce)


def check_welcome(welcome: bytes, expected: bytes) -> None:
    """:raises BadMessageError: if it is not the hub's"""
    if not hmac.compare_digest(welcome, expected):
        raise BadMessageError("another process listens in place of the hub")


def _proof(secret: bytes, who: bytes, nonce: bytes) -> bytes:
    return hmac.digest(secret, who + nonce, hashlib.sha256)


# --- messages -------------------------------------------------------------------------------------


def size_of(body: Section) -> int:
    return sum(memoryview(piece).nbytes for piece in body)


class MessageReader:
    """Cuts a stream of bytes into messages.

    Bodies are lists of the pieces in which they came: nothing large is joined or copied.

    :param header: the format of headers, whose last field is the size of the body
    """

    def __init__(self, header: struct.Struct) -> None:
        self._header = header
        self._rest = b""
        self._fields: tuple[int, ...] | None = None  # of a message whose body has not all come
        self._body: Section = []
        self._missing = 0

    def feed(self, data: bytes) -> Iterator[tuple[tuple[int, ...], Section]]:
        """Take the next bytes; yield header and body of the messages that they complete.

        :raises BadMessageError: if they are no message
        """
        if self._rest:
            data = self._rest + data
            self._rest = b""
        view = memoryview(data)
        while True:
            if self._fields is None:
                if len(view) < self._header.size:
                    self._rest = bytes(view)
                    return
                self._fields = self._header.unpack_from(view)
                self._missing = self._fields[-1]
                if self._missing > _MAX_BYTES:
                    raise BadMessageError("a message announces an impossible size")
                view = view[self._header.size :]
            piece = view[: self._missing]
            if piece:
                self._body.append(piece)
                self._missing -= len(piece)
                view = view[len(piece) :]
            if self._missing:
                return
            message = self._fields, self._body
            self._fields, self._body = None, []
            yield message


def pack_request(op: Op, obj: int, number: int, holder: int, body: Section) -> list[Buffer]:
    return [REQUEST.pack(op, obj, number, holder, size_of(body)), *body]


def pack_answer(number: int, value: object) -> list[Buffer]:
    """Make the answer that gives a value: an item of a queue (a list), or what JSON has."""
    if isinstance(value, list):
        return [ANSWER.pack(AnswerKind.ITEM, number, size_of(value)), *value]
    body = b"" if value is None else json_bytes(value)
    return [ANSWER.pack(AnswerKind.VALUE, number, len(body)) + body]


def pack_error(number: int, error: BaseException) -> list[Buffer]:
    name = type(error).__name__
    body = json_bytes([name, str(error)])
    return [ANSWER.pack(AnswerKind.ERROR, number, len(body)) + body]


def unpack_answer(kind: int, body: Section) -> Any:
    """Return the value that an answer gives, or raise its error."""
    if kind == AnswerKind.ITEM:
        return body
    if kind == AnswerKind.VALUE:
        return json_value(body) if body else None
    name, text = json_value(body)
    raise _ERRORS.get(name, RuntimeError)(*((text,) if text else ()))


def json_bytes(value: object) -> bytes:
    return json.dumps(value).encode()


def json_value(body: Section) -> Any:
    return json.loads(b"".join(body))


_ERRORS: dict[str, Callable[..., BaseException]] = {
    error.__name__: error
    for error in (
        RuntimeError,
        ValueError,
        threading.BrokenBarrierError,
        anyio.WouldBlock,
        anyio.EndOfStream,
        anyio.ClosedResourceError,
        anyio.BrokenResourceError,
    )
}
