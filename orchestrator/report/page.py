"""The HTML page of a run: one file with everything in it, made from the store alone.

`page` can be called for a run that goes on, failed or is long finished, on any machine that reads its store. The page
fetches nothing when it is looked at: no script, no font, no address but `data:`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from orchestrator.errors import OrchError
from orchestrator.io.redact import redact
from orchestrator.report import words
from orchestrator.report.blocks import Block, Text
from orchestrator.report.graph import rails
from orchestrator.report.record import RunRecord, StageRecord, read
from orchestrator.report.sections import SECTIONS, Section, lineage, problems
from orchestrator.store.artifacts import Cost
from orchestrator.store.runs import Run

NAME = "report.html"
SYMBOLS = {
    "done": "✓",
    "cached": "✓",
    "running": "▶",
    "elsewhere": "▶",
    "waiting": "…",
    "failed": "✗",
    "stopped": "‖",
    "interrupted": "‖",
    "skipped": "–",
}
"""Beside each state's word, so that neither colour nor symbol alone has to be understood."""


def place(run: Run) -> str:
    """The key of a run's page in its store."""
    return f"runs/{run.id}/{NAME}"


def page(run: Run) -> str:
    """The run's page as it is now: HTML without secrets."""
    from jinja2 import Environment, PackageLoader

    record = read(run)
    environment = Environment(
        loader=PackageLoader("orchestrator.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    drawing, width = rails(
        {stage.name: stage.needs for stage in record.stages.values()},
        {stage.name: stage.state for stage in record.stages.values()},
    )
    html = environment.get_template("page.html").render(
        run=record,
        verdict=verdict(record),
        facts=_facts(record),
        problems=list(_guarded(problems.show(record))),
        rails=drawing,
        rails_width=width,
        rows=[_row(record, stage) for stage in record.stages.values()],
        sections=[(section.title, blocks) for section in SECTIONS if (blocks := list(_show(section, record)))],
        lineage=list(_guarded(lineage.show(record))),
        made=words.moment(record.now),
    )
    return redact(html)


def verdict(run: RunRecord) -> str:
    """What became of the run, in a sentence."""
    states = [stage.state for stage in run.stages.values()]
    took, number = words.duration(run.finished - run.started), len(states)
    ready = states.count("done") + states.count("cached")
    if run.state == "done":
        made, reused = states.count("done"), states.count("cached")
        if not made:
            return f"Finished: all {number} stages were there already."
        return f"Finished in {took}: {made} of {number} stages made" + (f", {reused} reused." if reused else ".")
    if run.state == "running":
        at_work = [s.name for s in run.stages.values() if s.state in ("running", "elsewhere")]
        now = f", now {words.some(at_work)}" if at_work else ""
        return f"Running for {took}: {ready} of {number} stages are there{now}."
    blamed = [stage for stage in run.stages.values() if stage.state == run.state]
    why = f": {blamed[0].reason.rstrip('.')}" if len(blamed) == 1 and blamed[0].reason else ""
    names = words.some([stage.name for stage in blamed])
    return f"{run.state.capitalize()} after {took}: {names}{why}. {ready} of {number} stages are there."


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    made = [s.manifest for s in run.stages.values() if s.manifest is not None and s.manifest.run == run.id]
    reused = [s.manifest for s in run.stages.values() if s.manifest is not None and s.manifest.run != run.id]
    spent, saved = (sum((manifest.cost for manifest in some), Cost()) for some in (made, reused))
    costs = [words.hours(spent.cpu_hours, spent.gpu_hours)] if made else []
    costs += [f"reused work of {words.hours(saved.cpu_hours, saved.gpu_hours)}"] if reused else []
    codes = dict.fromkeys(lineage.commit(manifest.provenance.get("code", {})) for manifest in made or reused)
    pairs = [
        ("run", run.id),
        ("began", words.moment(run.started)),
        ("cost", "; ".join(costs)),
        ("code", ", ".join(filter(None, codes))),
        ("store", run.store.url),
    ]
    return [pair for pair in pairs if pair[1]]


def _row(run: RunRecord, stage: StageRecord) -> dict[str, object]:
    """What stands beside a stage's dot. `left` and `length` place its time within the run's, in per cent."""
    end = stage.finished or (run.now if stage.state == "running" else None)
    took = None if stage.started is None or end is None else end - stage.started
    span = max(run.finished - run.started, 1e-9)
    left = 0.0 if stage.started is None else 100 * (stage.started - run.started) / span
    share = stage.progress if stage.state == "running" else None
    made = stage.manifest
    cost = made.cost if made is not None and made.run == run.id else None
    earlier = f"{words.duration(made.wall_s)} earlier" if took is None and made is not None else ""
    return {
        "name": stage.name,
        "kind": stage.kind,
        "state": stage.state,
        "symbol": SYMBOLS[stage.state],
        "needs": words.some(list(stage.needs), most=5),
        "attempts": stage.attempts,
        "progress": "" if share is None else words.percent(share, 0),
        "time": words.duration(took),
        "earlier": earlier,
        "cost": "" if cost is None else words.hours(cost.cpu_hours, cost.gpu_hours),
        "left": min(max(left, 0.0), 100.0),
        "length": 0.0 if took is None else max(0.4, min(100 * took / span, 100 - left)),
    }


def _show(section: Section, run: RunRecord) -> Iterator[Block]:
    """A section's blocks."""
    return _guarded(section.load()(run, run.of_kinds(section.kinds)))


def _guarded(blocks: Iterable[Block]) -> Iterator[Block]:
    """The blocks; whatever is met in the store while they are made, the rest of the page stands."""
    try:
        yield from blocks
    except Exception as error:
        said = str(error) if isinstance(error, OrchError) else f"{type(error).__name__}: {error}"
        yield Text(f"This section ends here: {said}", warning=True)
