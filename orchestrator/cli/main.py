"""`orch`: the table of commands, loaded one at a time, and how errors reach a person.

`orch --help` reads this table alone, so it starts in a blink; a command's module is imported when it is called.
"""

from __future__ import annotations

import importlib
import sys

import click

COMMANDS = {
    "init": ("orchestrator.cli.init:init", "Write a starter recipe for your own data, or copy the demo."),
    "plan": ("orchestrator.cli.plan:plan", "What would run, what is cached, and why. Starts nothing."),
    "submit": ("orchestrator.cli.submit:submit", "Run a recipe: what is not there yet, on Ray."),
    "status": ("orchestrator.cli.status:status", "The runs of this store, or the stages of one."),
    "logs": ("orchestrator.cli.status:logs", "A stage's log; -f follows it."),
    "cancel": ("orchestrator.cli.status:cancel", "Ask a run to checkpoint and stop."),
    "show": ("orchestrator.cli.show:show", "A run, an artifact, its lineage; methods; the recipe's schema."),
    "compare": ("orchestrator.cli.compare:compare", "What differs between two runs or artifacts, field by field."),
    "fetch": ("orchestrator.cli.fetch:fetch", "Copy an artifact's files out of the store."),
    "keep": ("orchestrator.cli.keep:keep", "Name a run or an artifact that must stay."),
    "gc": ("orchestrator.cli.gc:gc", "What nobody needs any more; --delete it, --verify the rest."),
    "report": ("orchestrator.cli.report:report", "One HTML page of a run: stages, curves, results, data, lineage."),
    "ui": ("orchestrator.cli.ui:ui", "Open the Ray dashboard and MLflow."),
    "data": ("orchestrator.cli.data:data", "Built-in and buildable data sets."),
    "cluster": ("orchestrator.cli.ui:cluster", "The local Ray cluster: status, down."),
    "doctor": ("orchestrator.cli.doctor:doctor", "Check this machine, and say what to do about it."),
}


class Commands(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name][0].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]):
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"no command '{args[0]}'.{hint} The commands are: {', '.join(COMMANDS)}.", ctx)
        return super().resolve_command(ctx, args)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="orch")
def orch() -> None:
    """Declarative CLIP experiments on Ray.

    A recipe names stages; `orch submit recipe.yaml` runs what is not there yet, keeps every result as an immutable
    artifact, and tells MLflow what came from what. Begin with `orch plan recipes/tinyclip_progressive.yaml`.
    """


def main() -> None:
    """Run a command; exit with 2 for a user's error, 1 for a failure, 130 when interrupted."""
    from orchestrator.errors import OrchError

    try:
        sys.exit(orch.main(standalone_mode=False) or 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except OrchError as error:
        from orchestrator.io.redact import redact

        print(redact(f"error: {error}"), file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)


if __name__ == "__main__":
    main()
