"""Dask, as it is to the type checkers: what it says of its own types is not always so."""

from __future__ import annotations

from importlib import import_module
from typing import Any

distributed: Any = import_module("distributed")
cloudpickle: Any = import_module("cloudpickle")

DaskWorker = Any
"""A ``distributed.Worker``."""

Client = Any
"""A ``distributed.Client``."""
