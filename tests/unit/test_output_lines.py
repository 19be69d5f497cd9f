"""Cutting bytes into lines."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from creche._output_lines import LONGEST_LINE, LineSplitter


def split(*chunks: bytes) -> list[str]:
    splitter = LineSplitter()
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    return lines + splitter.finish()


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([], []),
        ([b""], []),
        ([b"\n"], [""]),
        ([b"a"], ["a"]),
        ([b"a\n"], ["a"]),
        ([b"a\n\nb"], ["a", "", "b"]),
        ([b"a", b"b\nc", b"\n"], ["ab", "c"]),
        ([b"\xc3", b"\xa9\n"], ["é"]),
        ([b"\xc3\n\xa9"], ["\\xc3", "\\xa9"]),
        ([b"a\r\n"], ["a\r"]),
        ([b"a\x00\x0c\x1c\xe2\x80\xa8b\n"], ["a\x00\x0c\x1c\u2028b"]),
    ],
)
def test_lines(chunks: list[bytes], lines: list[str]) -> None:
    assert split(*chunks) == lines


@given(st.lists(st.binary(max_size=20)))
def test_any_cut_gives_the_same(chunks: list[bytes]) -> None:
    data = b"".join(chunks)
    expected = data.decode("utf-8", "backslashreplace").split("\n")
    if data.endswith(b"\n") or not data:
        expected.pop()
    assert split(*chunks) == split(data)
    assert split(data) == [
        line.decode("utf-8", "backslashreplace") for line in data.split(b"\n")[: len(expected)]
    ]


@pytest.mark.parametrize("character", ["x", "é", "€", "😀"])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_long_lines_are_cut_between_characters(character: str, end: bytes) -> None:
    text = "a" + character * 200_000
    data = text.encode() + end
    cut = random.Random(1)
    chunks = []
    rest = data
    while rest:
        size = cut.randrange(1, 50_000)
        chunks.append(rest[:size])
        rest = rest[size:]
    for lines in (split(data), split(*chunks)):
        assert "".join(lines) == text
        sizes = [len(line.encode()) for line in lines]
        assert all(LONGEST_LINE - 4 < size <= LONGEST_LINE for size in sizes[:-1])


def test_longest_line_is_whole() -> None:
    line = b"x" * LONGEST_LINE
    assert split(line + b"\n" + line) == [line.decode()] * 2
    assert [len(piece) for piece in split(line + b"y\n")] == [LONGEST_LINE, 1]


def test_what_is_no_text_is_cut_as_well() -> None:
    lines = split(b"\x80" * (LONGEST_LINE + 10) + b"\n")
    assert lines == ["\\x80" * LONGEST_LINE, "\\x80" * 10]
