"""The pytest plugin of creche: the fixture and the marker ``creche_no_leaks``.

A module of its own, as pytest imports it for everybody who has creche installed: importing creche
is left to the first test that asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

_NAME = "creche_no_leaks"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{_NAME}(timeout=5.0): fail if the test leaves processes, threads, descriptors or shared"
        " memory behind; what is ending may take `timeout` seconds for that",
    )


@pytest.fixture
def creche_no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves processes, threads, descriptors or shared memory behind.

    What its other fixtures make counts as the test's, unless their scope is a wider one.
    """
    from creche.pytest_plugin import check_no_leaks

    marker = request.node.get_closest_marker(_NAME)
    with check_no_leaks(*marker.args, **marker.kwargs) if marker else check_no_leaks():
        yield


def pytest_itemcollected(item: pytest.Item) -> None:
    """Have the check enclose all other fixtures of the test."""
    names: list[str] | None = getattr(item, "fixturenames", None)
    if names is None or not (_NAME in names or item.get_closest_marker(_NAME)):
        return
    if _NAME in names:
        names.remove(_NAME)
    names.insert(_number_of_wider(item, names), _NAME)


def _number_of_wider(item: pytest.Item, names: list[str]) -> int:
    """How many fixtures that live longer than the test come first."""
    info = getattr(item, "_fixtureinfo", None)
    definitions = getattr(info, "name2fixturedefs", {})
    for number, name in enumerate(names):
        found = definitions.get(name)
        if name == "request" or (found and found[-1].scope == "function"):
            return number
    return len(names)
