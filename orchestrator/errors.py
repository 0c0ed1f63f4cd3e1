"""Errors that a user can act on.

Every error that reaches a person says what is wrong, where, and what to type or change next (`remedy`). Anything
else that escapes is a bug of ours. The command line prints these without a traceback and exits with `exit_code`.
"""

from __future__ import annotations


class OrchError(Exception):
    """Base of all errors meant for people.

    Args:
        message: what is wrong, in one sentence.
        remedy: the way out, in one sentence; may be empty where the message already says it.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}" if self.remedy else self.message

    def __reduce__(self):  # crosses process boundaries on Ray
        return _rebuild, (type(self), self.__dict__.copy(), self.args)


def _rebuild(cls: type[OrchError], state: dict, args: tuple) -> OrchError:
    error = cls.__new__(cls)
    Exception.__init__(error, *args)
    error.__dict__.update(state)
    return error


class UserError(OrchError):
    """The recipe, the command or the environment is wrong: refused before work starts, never retried."""

    exit_code = 2


class StageError(OrchError):
    """A stage's own work failed in a way that retrying cannot cure."""


class DataError(StageError):
    """Samples or shards are bad beyond the recipe's limit."""


class NotFiniteError(StageError):
    """The loss is not finite. `uids` are those of the batch, kept for inspection."""

    def __init__(self, message: str, remedy: str = "", uids: tuple[str, ...] = ()) -> None:
        super().__init__(message, remedy)
        self.uids = uids


class WorkerLost(OrchError):
    """Another process or node that a stage computes on has died (a rank of a training): the stage is started again."""

    def __init__(self, message: str, remedy: str = "", preempted: bool = False) -> None:
        super().__init__(message, remedy)
        self.preempted = preempted


class StoreAway(OrchError):
    """The store did not answer, also after the retries of `io`. It may come back: what was finished is kept."""


class LeaseLostError(OrchError):
    """Another process has taken over this stage; its former holder must stop and publish nothing."""


class Cancelled(OrchError):
    """The run was asked to stop; work done so far is kept and submitting again goes on."""

    exit_code = 130
