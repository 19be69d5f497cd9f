"""Work that is larger than one machine: the same pool, on a Dask cluster.

How many primes there are below ten million, counted in pieces. Without an address the cluster is
one of the program's own, on this machine::

    python examples/cluster_map.py
    python examples/cluster_map.py tcp://scheduler:8786 --backend trio
"""

from __future__ import annotations

import argparse
import math
import time

import anyio

import creche
from creche import cluster
from creche.progress import track

LIMIT = 10_000_000
PIECE = 100_000


def count_primes(start: int) -> int:
    """Count the primes among the numbers of one piece, with a sieve."""
    stop = start + PIECE
    sieve = bytearray([1]) * PIECE
    for factor in range(2, math.isqrt(stop) + 1):
        first = max(factor * factor, -(-start // factor) * factor)
        if first < stop:
            sieve[first - start :: factor] = bytes(len(range(first, stop, factor)))
    return sum(sieve) - (2 if start == 0 else 0)


def search_for_ever() -> None:
    """Work that nobody should wait for."""
    while True:
        count_primes(0)


async def main(address: str | None) -> None:
    # The main module is not on the other machines: its functions travel as a whole.
    async with cluster.open_pool(address, stop=creche.StopPolicy(grace=1)) as pool:
        began = time.monotonic()
        starts = range(0, LIMIT, PIECE)
        total = 0
        async for count in track(pool.map(count_primes, starts), description="counting"):
            total += count
        print(f"{total} primes below {LIMIT} in {time.monotonic() - began:.1f} s")

        # Cancelling stops the process on the far machine, and frees its place.
        with anyio.move_on_after(1):
            await pool.run(search_for_ever)
        print(f"given up after a second; {await pool.run(count_primes, 0)} primes below {PIECE}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Count primes on a Dask cluster.")
    parser.add_argument("address", nargs="?", help="of the scheduler; by default one of its own")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    options = parser.parse_args()
    anyio.run(main, options.address, backend=options.backend)
