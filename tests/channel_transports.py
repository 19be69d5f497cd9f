"""A fixture that has channels made by each of the ways in which they can be made."""

from __future__ import annotations

from typing import Any

import pytest

from creche._channel import _create
from creche._channel._hub_transport import hub_transports
from creche._channel._packet_transport import packet_transports
from creche._platform import HAS_PACKET_SOCKETS

TRANSPORTS = {"packets": packet_transports, "hub": hub_transports}


@pytest.fixture(autouse=True, params=TRANSPORTS if HAS_PACKET_SOCKETS else ["hub"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What channels that this process makes are made of."""
    monkeypatch.setattr(_create, "make_transports", TRANSPORTS[request.param])
    return str(request.param)


only_packets: Any = pytest.mark.parametrize("transport", ["packets"], indirect=True)
"""For tests of what only sockets do."""

only_hub: Any = pytest.mark.parametrize("transport", ["hub"], indirect=True)
"""For tests of what only ends do whose items lie with a hub."""
