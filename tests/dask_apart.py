"""Imports Dask, and keeps what that does to the process away from the other tests.

Whoever imports it has all exceptions pickled in a way of its own, with their tracebacks.
"""

from __future__ import annotations

import copyreg

_ours = dict(copyreg.dispatch_table)

import dask as dask  # noqa: E402
import distributed as distributed  # noqa: E402

copyreg.dispatch_table.clear()
copyreg.dispatch_table.update(_ours)
