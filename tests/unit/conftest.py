"""Fixtures and settings of the tests without processes."""

from __future__ import annotations

from hypothesis import settings

# On a busy machine, any example may take long; nothing here is about how fast something is.
settings.register_profile("creche", deadline=None)
settings.load_profile("creche")
