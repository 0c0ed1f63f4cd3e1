"""Variables that another process of ours needs: credentials, and where things are.

They travel as an argument of a Ray actor or worker: pickled, over Ray's authenticated connections, and kept in memory
alone. Ray would show them in a runtime environment, and keep the settings of a trainer; of this it shows the names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

PASSED_ON = ("AWS_", "HF_", "ORCH_")
"""Prefixes of what the local cluster's workers get: the cluster may have been started under others."""
_NAMES = "ORCH_PASSED_ON"


class Environment:
    """Variables to take over with `enter`, in whatever process this arrives."""

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        self._variables = dict(variables or {})

    def __repr__(self) -> str:
        return f"Environment({', '.join(sorted(self._variables))})"

    @classmethod
    def to_pass_on(cls) -> Environment:
        """What a submitter's workers get."""
        return cls({name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)})

    @classmethod
    def passed_on(cls) -> Environment:
        """What this process was given, to give it to processes of its own."""
        names = os.environ.get(_NAMES, "").split()
        return cls({name: os.environ[name] for name in names if name in os.environ})

    def enter(self) -> None:
        """Set the variables in this process."""
        os.environ.update(self._variables)
        os.environ[_NAMES] = " ".join(sorted(self._variables))
