"""Who the children of one supervisor are, and how they are stopped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from .._errors import ProcessStateError
from ._changes import Changes
from ._child import Life, SupervisedChild
from ._lives import LifeListener
from ._mending import Mender
from ._options import EngineOptions
from ._states import ChildState, Step


class Spec(Protocol):
    """What all lives of a child have in common."""

    def make_life(self, child: SupervisedChild, listener: LifeListener) -> Life: ...

    def close(self) -> None:
        """There will be no more of them."""


class Roster:
    """The children of one supervisor, in the order in which they were started.

    Its engine, which derives from this, starts them and hears of them.
    """

    def __init__(self, name: str, options: EngineOptions) -> None:
        self.name = name
        self.options = options
        self.children: dict[str, SupervisedChild] = {}
        self.changes = Changes()
        self._specs: dict[SupervisedChild, Spec] = {}
        self._menders: dict[SupervisedChild, Mender] = {}
        self._reserved: set[str] = set()

    @property
    def order(self) -> Sequence[SupervisedChild]:
        return list(self.children.values())

    # --- names ----------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether a child has that name, or one that is going to be started."""
        return name in self.children or name in self._reserved

    def reserve(self, name: str) -> None:
        """Take a name for a child.

        :raises ProcessStateError: if another one has it
        """
        if self.has(name):
            raise ProcessStateError(
                f"supervisor {self.name!r} has a child {name!r} already; remove() it first, or use"
                " another name"
            )
        self._reserved.add(name)

    def release(self, name: str) -> None:
        """Give a reserved name back."""
        self._reserved.discard(name)
        self.changes.notify()

    # --- their end ------------------------------------------------------------------------------

    async def stop_children(self, children: Iterable[SupervisedChild]) -> None:
        """Stop them in the order for that, and wait until they are gone."""
        last_first = list(reversed(list(children)))
        if self.options.stop_order == "together":
            for child in last_first:
                self.stop(child)
        for child in last_first:
            self.stop(child)
            await self.wait_until_gone(child)

    def stop(self, child: SupervisedChild, *, at_once: bool = False) -> None:
        """Have all its lives end; more than once is no more than once."""
        for life in child._lives:
            life.stop(at_once=at_once)
            if life is child._life:
                child._advance(Step.STOP)

    async def wait_until_gone(self, child: SupervisedChild) -> None:
        await self.changes.wait_until(lambda: not child._lives)

    def drop(self, child: SupervisedChild, *, at_once: bool = False) -> None:
        """It is not to come back, and is no child any more as soon as it has no lives."""
        child._removed = True
        if child in self._menders:
            self._menders[child].forget(child)
        if child._lives:
            self.stop(child, at_once=at_once)
            return
        if self.children.get(child.name) is child:
            del self.children[child.name]
        if child._state is not ChildState.REMOVED:
            child._advance(Step.REMOVE)
            self._forget(child)
        self.changes.notify()

    def _forget(self, child: SupervisedChild) -> None:
        self._menders.pop(child, None)
        spec = self._specs.pop(child, None)
        if spec is not None:
            spec.close()

    def _notify(self, child: SupervisedChild) -> None:
        self.changes.notify()
        mender = self._menders.get(child)
        if mender is not None:
            mender.changes.notify()
