"""A pipeline of processes: one reads, some parse, one writes, and none runs ahead of the next.

A log of a web server is made up on the spot. The channels between the stages hold BUFFER items,
so the reader waits whenever the writer, which is slow at first, does not keep up.
"""

import argparse
import itertools
import random
import re
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import anyio

from creche import (
    AsyncProcess,
    ChannelReceiveStream,
    ChannelSendStream,
    create_channel,
    from_process,
    open_nursery,
)

BUFFER = 64

Record = tuple[str, str, int, int]  # address, path, status, bytes

LINE = re.compile(r'(\S+) \S+ \S+ \[[^]]+\] "GET (\S+) [^"]*" (\d{3}) (\d+)')


def make_log(path: Path, lines: int) -> None:
    """Write a log as a web server would."""
    dice = random.Random(1)
    with path.open("w") as file:
        for second in range(lines):
            address = f"192.0.2.{dice.randrange(256)}"
            page = dice.choice(["/", "/about", "/shop", "/shop/cart", "/missing"])
            status = 404 if page == "/missing" else 200
            clock = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(second))
            size = dice.randrange(200, 20_000)
            file.write(f'{address} - - [{clock}] "GET {page} HTTP/1.1" {status} {size}\n')


def read(path: Path, lines: ChannelSendStream[str]) -> None:
    """The first stage. Its end of the channel is its own: when it is closed, that has ended."""
    with lines, path.open() as file:
        for number, line in enumerate(file, start=1):
            lines.send_sync(line)  # waits while the parsers do not keep up
            if number % 100 == 0:
                from_process.report(number)
        from_process.report(number)


def parse(lines: ChannelReceiveStream[str], records: ChannelSendStream[Record]) -> int:
    """The second stage, of which several processes share the work."""
    parsed = 0
    with lines, records:
        for line in lines:
            if match := LINE.match(line):
                address, path, status, size = match.groups()
                records.send_sync((address, path, int(status), int(size)))
                parsed += 1
    return parsed


def batches(records: ChannelReceiveStream[Record], size: int) -> Iterator[list[Record]]:
    while batch := list(itertools.islice(records, size)):
        yield batch


def write(records: ChannelReceiveStream[Record], path: Path) -> int:
    """The last stage: slow at first, as a database is that has other things to do."""
    written = 0
    with records, sqlite3.connect(path) as database:
        database.execute(
            "CREATE TABLE hits (address TEXT, path TEXT, status INTEGER, size INTEGER)"
        )
        for batch in batches(records, 500):
            database.executemany("INSERT INTO hits VALUES (?, ?, ?, ?)", batch)
            written += len(batch)
            from_process.report(written)
            if written <= 3000:
                time.sleep(0.2)
    return written


async def show(reader: AsyncProcess[None], writer: AsyncProcess[int]) -> None:
    """Print how far the two ends are, which is never far from each other."""
    async for progress in writer.progress:
        if progress.done % 5000 == 0 or progress.done <= 3000:
            print(f"read {reader.progress.done:>7}   written {progress.done:>7}", flush=True)


async def main(lines: int, parsers: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        log, database = Path(name, "access.log"), Path(name, "hits.sqlite")
        make_log(log, lines)
        send_line, receive_line = create_channel[str](BUFFER)
        send_record, receive_record = create_channel[Record](BUFFER)
        async with open_nursery() as nursery, anyio.create_task_group() as task_group:
            # Each end goes to the process that it is passed to; what several get are clones of it.
            reader = nursery.start_soon(read, log, send_line)
            workers = [
                nursery.start_soon(parse, receive_line.clone(), send_record.clone())
                for _ in range(parsers)
            ]
            receive_line.close()
            send_record.close()
            writer = nursery.start_soon(write, receive_record, database)
            task_group.start_soon(show, reader, writer)
        print("parsed by each:", ", ".join(str(worker.return_value) for worker in workers))
        with sqlite3.connect(database) as connection:
            rows = connection.execute(
                "SELECT path, COUNT(*), SUM(size) FROM hits GROUP BY path ORDER BY 2 DESC"
            ).fetchall()
        for path, hits, size in rows:
            print(f"{path:<12} {hits:>7} hits {size / 1e6:>8.1f} MB")
        if sum(hits for _, hits, _ in rows) != lines or writer.return_value != lines:
            raise SystemExit("lines are missing")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--parsers", type=int, default=2)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    options = parser.parse_args()
    anyio.run(main, options.lines, options.parsers, backend=options.backend)
