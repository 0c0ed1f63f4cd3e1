"""The DAG as rails: one row a stage, in an order in which each comes after those it needs.

A stage whose result is used has a rail, which runs down to its last user and bends into each user's dot on the way.
So every edge can be followed, rows hold text of any length, and a hundred stages fit on a phone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

ROW = 58
"""Pixels: the height of a row in the style sheet."""
MOST = 90
"""Pixels for all rails together; many are drawn closer."""
DOT = 5.5


def lanes(needs: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The lane of each stage: the first that is free, or becomes free because this stage is its last user."""
    order = list(needs)
    last = {name: order.index(name) for name in order}
    for row, name in enumerate(order):
        for source in needs[name]:
            last[source] = row
    taken: dict[str, int] = {}
    held: dict[int, int] = {}
    for row, name in enumerate(order):
        free = [lane for lane in range(len(order)) if held.get(lane, -1) <= row]
        taken[name] = free[0]
        held[free[0]] = last[name] if last[name] > row else row + 1
    return taken


def rails(needs: Mapping[str, Sequence[str]], states: Mapping[str, str]) -> tuple[Markup, int]:
    """The drawing that stands beside the rows, and its width in pixels."""
    lane = lanes(needs)
    step = min(17.0, MOST / max(1, max(lane.values(), default=0)))
    width = round(2 * DOT + 8 + step * max(lane.values(), default=0))
    place = {name: (DOT + 4 + step * lane[name], ROW * row + ROW / 2) for row, name in enumerate(needs)}
    parts = []
    for name, sources in needs.items():
        x, y = place[name]
        for source in sources:
            left, top = place[source]
            bend = f"V{y - 16:.1f}Q{left:.1f} {y:.1f} {x:.1f} {y:.1f}" if left != x else f"V{y:.1f}"
            parts.append(f'<path d="M{left:.1f} {top:.1f}{bend}"/>')
    for name, (x, y) in place.items():
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{DOT}" class="{states[name]}"/>')
    height = ROW * len(needs)
    return Markup(
        f'<svg class="rails" width="{width}" height="{height}" viewBox="0 0 {width} {height}" aria-hidden="true">'
        f"{''.join(parts)}</svg>"
    ), width
