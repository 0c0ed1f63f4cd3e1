"""Indexes ROOT SOURCE on the recorded cluster, as a process of its own; prints what is said, then the digest."""

from __future__ import annotations

import sys

from orchestrator.engine import cluster
from orchestrator.engine.index import INDEX, on_ray
from orchestrator.io.environment import Environment

if __name__ == "__main__":
    connection = cluster.connect()
    environment = Environment.to_pass_on()
    root, source = sys.argv[1:]
    print(on_ray(INDEX, root, source, print, environment, lambda: cluster.alive(connection)))
    cluster.disconnect(connection)
