"""Cutting a stream of bytes into lines of text, without I/O."""

from __future__ import annotations

LONGEST_LINE = 64 * 1024
"""Bytes. A longer line is cut into pieces, so that one without an end takes no memory without end.
"""


class LineSplitter:
    """Cuts what it is fed into lines, without their newlines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """Take the next bytes; return the lines that they complete."""
        *lines, rest = data.split(b"\n")
        if not lines:
            self._rest += rest
            return self._cut_rest() if len(self._rest) > LONGEST_LINE else []
        lines[0] = self._rest + lines[0]
        self._rest = rest
        if max(map(len, lines)) > LONGEST_LINE:
            lines = [piece for line in lines for piece in _pieces(line)]
        return [_text(line) for line in lines]

    def finish(self) -> list[str]:
        """The stream has ended: return the last line, if it lacks its newline."""
        rest, self._rest = self._rest, b""
        return [_text(piece) for piece in _pieces(rest)] if rest else []

    def _cut_rest(self) -> list[str]:
        *pieces, self._rest = _pieces(self._rest)
        return [_text(piece) for piece in pieces]


def _pieces(line: bytes) -> list[bytes]:
    """Cut a line into pieces, between two characters."""
    pieces: list[bytes] = []
    start = 0
    while len(line) - start > LONGEST_LINE:
        end = start + LONGEST_LINE
        for cut in range(end, end - 4, -1):
            if line[cut] & 0xC0 != 0x80:  # the first byte of a character in UTF-8
                end = cut
                break
        pieces.append(line[start:end])
        start = end
    pieces.append(line[start:])
    return pieces


def _text(line: bytes) -> str:
    return line.decode("utf-8", "backslashreplace")
