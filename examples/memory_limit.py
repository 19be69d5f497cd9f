"""A limit for the memory of a child: too much is an exception there, and one here.

Linux and macOS only: Windows has no ``resource`` module.
"""

import resource
from collections.abc import Callable

import anyio

from creche import run_in_process

MIB = 1024 * 1024


def limited(limit: int, func: Callable[[int], int], argument: int) -> int:
    """Call ``func(argument)`` with at most ``limit`` bytes of address space."""
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return func(argument)


def fill(size: int) -> int:
    return len(bytearray(size))


async def main() -> None:
    for size in (100 * MIB, 10_000 * MIB):
        try:
            filled = await run_in_process(limited, 2_000 * MIB, fill, size)
        except MemoryError:
            print(f"{size // MIB:>6} MiB: too much, and nothing but that call failed")
        else:
            print(f"{filled // MIB:>6} MiB: fine")


if __name__ == "__main__":
    anyio.run(main)
