"""Messages on the wire, without I/O.

A frame is a fixed header, the lengths of its sections, and the sections. The first section is a
pickle (or empty), the others are buffers that the pickle refers to (protocol 5's out-of-band data).

Data is never joined or copied here: sections are lists of the pieces in which they came, because
joining a gigabyte would hold the GIL, and with it the parent's event loop, for most of a second.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

MAGIC = b"crch"
_HEADER = struct.Struct("!4sBI")
_LENGTH = struct.Struct("!Q")

# A header beyond these limits is not ours, whatever its magic says.
MAX_SECTIONS = 1 << 20
MAX_SECTION_BYTES = 1 << 48

Buffer = bytes | bytearray | memoryview
Section = list[Buffer]


class FrameKind(enum.IntEnum):
    """What a frame says, or a message between a pool and a worker.

    CALL, STOP, CHUNK, REPLY and LOGGED go to the child, all others to the parent.
    """

    CALL = 1
    STOP = 2
    RUNNING = 3
    STARTED = 4
    VALUE = 5
    EXCEPTION = 6
    EXITED = 7
    STOPPED = 8
    BAD_MAIN = 9
    BAD_CALL = 10
    BAD_VALUE = 11
    CHUNK = 12
    READY = 13
    VALUES = 14
    REQUEST = 15
    REPLY = 16
    PROGRESS = 17
    LOG = 18
    LOGGED = 19
    WITHDRAWN = 20
    LINE = 21
    AWAITED_REQUEST = 22
    UNAVAILABLE = 23


class BadFrameError(Exception):
    """The bytes are not a creche frame."""


@dataclass(slots=True)
class Frame:
    kind: FrameKind
    sections: list[Section] = field(default_factory=list)


def pack(kind: FrameKind, sections: Sequence[Section] = ()) -> Iterator[Buffer]:
    """Yield the pieces of a frame, ready to be written one after the other."""
    header = bytearray(_HEADER.pack(MAGIC, kind, len(sections)))
    for section in sections:
        header += _LENGTH.pack(sum(memoryview(piece).nbytes for piece in section))
    yield bytes(header)
    for section in sections:
        yield from section


class FrameReader:
    """Cuts a stream of bytes into frames, whatever pieces it comes in."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._frame: Frame | None = None
        self._missing: list[int] = []  # bytes still to come of each unfinished section

    @property
    def in_frame(self) -> bool:
        """Whether the stream would be cut off in the middle of a frame if it ended here."""
        return bool(self._header) or self._frame is not None

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take the next bytes of the stream; yield the frames that they complete.

        :raises BadFrameError: if they are not part of a frame
        """
        view = memoryview(data)
        while view:
            if self._frame is None:
                view = self._feed_header(view)
            else:
                view = self._feed_sections(self._frame, view)
            if self._frame is not None and not self._missing:
                frame, self._frame = self._frame, None
                yield frame

    def _feed_header(self, view: memoryview) -> memoryview:
        view = self._fill_header(_HEADER.size, view)
        if len(self._header) < _HEADER.size:
            if not MAGIC.startswith(self._header[: len(MAGIC)]):
                raise BadFrameError(f"a frame cannot begin with {bytes(self._header)!r}")
            return view
        magic, kind, count = _HEADER.unpack_from(self._header)
        if magic != MAGIC or count > MAX_SECTIONS or kind not in FrameKind.__members__.values():
            raise BadFrameError(f"a frame cannot begin with {bytes(self._header)!r}")
        view = self._fill_header(_HEADER.size + count * _LENGTH.size, view)
        if len(self._header) == _HEADER.size + count * _LENGTH.size:
            lengths = [
                _LENGTH.unpack_from(self._header, _HEADER.size + i * _LENGTH.size)[0]
                for i in range(count)
            ]
            if any(length > MAX_SECTION_BYTES for length in lengths):
                raise BadFrameError("a frame announces an impossible length")
            self._header = bytearray()
            self._frame = Frame(FrameKind(kind), [[] for _ in lengths])
            self._missing = lengths
            self._skip_finished_sections()
        return view

    def _fill_header(self, size: int, view: memoryview) -> memoryview:
        taken = max(0, size - len(self._header))
        self._header += view[:taken]
        return view[taken:]

    def _feed_sections(self, frame: Frame, view: memoryview) -> memoryview:
        section = frame.sections[len(frame.sections) - len(self._missing)]
        piece = view[: self._missing[0]]
        section.append(piece)
        self._missing[0] -= len(piece)
        self._skip_finished_sections()
        return view[len(piece) :]

    def _skip_finished_sections(self) -> None:
        while self._missing and self._missing[0] == 0:
            del self._missing[0]
