"""A stage's events: numbered segments of JSON lines, closed every second or so, never appended to.

    <root>/work/<fingerprint>/<generation>/events/<n>.jsonl

The worker writes, the engine's tailer is the only reader that feeds the live view, MLflow and Ray's metrics. An event is a JSON
object with `t` (Unix seconds), `type` and the fields of its type:

    progress  done, total, unit                              how far the stage is
    report    samples, metrics{name: float}                  a point of the curves, keyed by samples seen
    message   level ("info"|"warning"|"error"), text         a line for the log and the live view
    resumed   samples, generation                            work went on from this checkpoint; later points replace earlier ones
    phase     name                                           a training phase or step of the stage began

After a resume the points with `samples` above the resumed position are written again; readers keep, for each name and sample
count, the last value (they are equal where resume is exact).
"""

from __future__ import annotations

TYPES = ("progress", "report", "message", "resumed", "phase")
