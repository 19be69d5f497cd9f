"""Race several ways to a result: the first one wins, the others are stopped."""

import math
import random

import anyio

from creche import AsyncProcess, open_nursery

NUMBER = 1_000_003 * 998_244_353


def by_trial_division(number: int) -> int:
    return next(d for d in range(2, math.isqrt(number) + 1) if number % d == 0)


def by_fermat(number: int) -> int:
    root = math.isqrt(number) + 1
    while math.isqrt(root * root - number) ** 2 != root * root - number:
        root += 1
    return root - math.isqrt(root * root - number)


def by_rho(number: int) -> int:
    while True:
        slow = fast = random.randrange(2, number)
        step = random.randrange(1, number)
        divisor = 1
        while divisor == 1:
            slow = (slow * slow + step) % number
            fast = ((fast * fast + step) ** 2 + step) % number
            divisor = math.gcd(abs(slow - fast), number)
        if divisor != number:
            return divisor


async def main() -> None:
    winners: list[tuple[str, int]] = []

    async def wait_for(process: AsyncProcess[int]) -> None:
        winners.append((process.name, await process))
        nursery.cancel_scope.cancel()

    # The nursery is the outer one: cancelling it ends the tasks that wait for its processes, too.
    async with open_nursery() as nursery, anyio.create_task_group() as tasks:
        for solver in (by_trial_division, by_fermat, by_rho):
            tasks.start_soon(wait_for, nursery.start_soon(solver, NUMBER, name=solver.__name__))

    name, divisor = winners[0]
    print(f"{name} was first: {NUMBER} = {divisor} * {NUMBER // divisor}")


if __name__ == "__main__":
    anyio.run(main)
