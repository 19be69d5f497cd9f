"""A deadline for work that cannot be interrupted.

A regular expression that backtracks keeps its thread, and the GIL, for longer than the universe
will last. In a process of its own it is stopped when its time is up.
"""

import re

import anyio

from creche import ProcessTimeout, StopPolicy, run_in_process


def matches(pattern: str, text: str) -> bool:
    return re.fullmatch(pattern, text) is not None


async def main() -> None:
    for text in ("a" * 20, "a" * 60 + "!"):
        try:
            # C code does not hear a polite request, so there is no point in a long grace period.
            answer = await run_in_process(
                matches, r"(a+)+", text, timeout=6.0, stop=StopPolicy(grace=0.1)
            )
        except ProcessTimeout as error:
            print(f"{text[:8]}…  {error}")
        else:
            print(f"{text[:8]}…  {'matches' if answer else 'does not match'}")


if __name__ == "__main__":
    anyio.run(main)
