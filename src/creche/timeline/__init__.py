"""Record what ran, when, and for how long, and look at it afterwards::

    with creche.timeline.record() as timeline:
        anyio.run(main)
    timeline.write_html("timeline.html")  # one page, to open in any browser
    timeline.write_trace("timeline.json")  # for https://ui.perfetto.dev

``python -m creche timeline script.py`` does that for a script as it is.
"""

from __future__ import annotations

from ._recorder import Timeline as Timeline
from ._recorder import record as record
from ._spans import CallSpan as CallSpan
from ._spans import ProcessSpan as ProcessSpan

__all__ = ["CallSpan", "ProcessSpan", "Timeline", "record"]

for _value in (Timeline, record, CallSpan, ProcessSpan):
    _value.__module__ = __name__
