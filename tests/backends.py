"""Marks of tests of what one event loop alone has."""

from __future__ import annotations

import pytest

# Its own cancellation (``task.cancel()``), say, which no scope shields from.
in_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])
in_trio = pytest.mark.parametrize("anyio_backend", ["trio"])
