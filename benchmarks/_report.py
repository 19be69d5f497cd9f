"""Rendering the figures: a page for the documentation, and a plot."""

from __future__ import annotations

import itertools
import math
from html import escape
from typing import Any

from ._measuring import Table

WIDTH, BAR, GAP, LABEL = 860, 18, 8, 380


def page(results: dict[str, Any]) -> str:
    lines = [
        "# Benchmarks",
        "",
        f"Measured with `python -m benchmarks` on a machine with {results['machine']}. All figures"
        " of a table come from one run, in rounds taken in turn, and are medians. Machines are"
        " shared and noisy: the ratios mean more than the milliseconds. `make bench` measures them"
        " on yours.",
        "",
    ]
    for table in itertools.chain(*results["suites"].values()):
        lines += [f"## {table['title']}", "", table["about"], ""]
        if table["plot"]:
            lines += [
                f"```{{image}} _static/{table['plot']}.svg",
                f":alt: {table['title']}, creche and its peers, on a logarithmic scale",
                "```",
                "",
            ]
        has_ratio = any(row["ratio"] is not None for row in table["rows"])
        heads = ["", "figure", *(["ratio"] if has_ratio else []), "target", "met"]
        lines += [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for row in table["rows"]:
            ratio = [] if not has_ratio else ["" if row["ratio"] is None else f"{row['ratio']:.2f}"]
            met = {None: "", True: "yes", False: "**no**"}[row["met"]]
            cells = [row["name"], figure(row), *ratio, row["target"], met]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def figure(row: dict[str, Any]) -> str:
    value = row["value"]
    text = f"{value:,.0f}" if value == round(value) or abs(value) >= 100 else f"{value:.2f}"
    return f"{text} {row['unit']}".strip()


def plot(table: Table) -> str:
    """Draw bars on a logarithmic scale, as an SVG that is legible in light and dark."""
    unit = table.rows[0].unit
    bars = [row for row in table.rows if row.unit == unit]
    low = 10 ** math.floor(math.log10(min(row.value for row in bars)))
    high = 10 ** math.ceil(math.log10(max(row.value for row in bars)))
    span = WIDTH - LABEL - 70

    def x(value: float) -> float:
        return LABEL + span * math.log10(value / low) / math.log10(high / low)

    height = 50 + len(bars) * (BAR + GAP) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        ' font-family="system-ui, sans-serif" font-size="13">',
        "<style>text{fill:#333}.axis{stroke:#8888}.peer{fill:#8a94a6}.ours{fill:#0a7f6f}"
        "@media(prefers-color-scheme:dark){text{fill:#ddd}.ours{fill:#2dc4ad}}</style>",
        f'<text x="10" y="22" font-size="15" font-weight="600">{escape(table.title)}</text>',
    ]
    bottom = 40 + len(bars) * (BAR + GAP)
    tick = low
    while tick <= high:
        parts.append(
            f'<line class="axis" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="36" y2="{bottom}"/>'
            f'<text x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">'
            f"{tick:,g} {unit}</text>"
        )
        tick *= 10
    for number, row in enumerate(bars):
        y = 40 + number * (BAR + GAP)
        kind = "ours" if row.name.startswith("creche") else "peer"
        parts.append(
            f'<text x="{LABEL - 8}" y="{y + 14}" text-anchor="end">{escape(row.name)}</text>'
            f'<rect class="{kind}" x="{LABEL}" y="{y}" width="{x(row.value) - LABEL:.1f}"'
            f' height="{BAR}" rx="2"/>'
            f'<text x="{x(row.value) + 6:.1f}" y="{y + 14}">{row.value:.1f}</text>'
        )
    parts.append("</svg>")
    return "\n".join(parts) + "\n"
