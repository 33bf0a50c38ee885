"""The command `t1-edge`. Each room has its commands in its own `cli` package.

A command's module is imported when the command is looked up, and imports nothing heavy until it
runs: `t1-edge --help` must not load numpy.
"""

from importlib import import_module
from typing import Final

import click

from t1_edge import __version__
from t1_edge.errors import T1Error

INTERRUPTED: Final = 130

_COMMANDS: Final = {
    "pull": "t1_edge_export.cli.pull",
    "export": "t1_edge_export.cli.export",
    "verify": "t1_edge.cli.verify",
    "info": "t1_edge.cli.info",
    "doctor": "t1_edge.cli.doctor",
    "encode": "t1_edge.cli.encode",
    "bench": "t1_edge_bench.cli.bench",
    "demo": "t1_edge_bench.cli.demo",
}
"""Command to module; the module holds a click command of the same name."""


class _Commands(click.Group):
    """Finds commands by name in the rooms, and turns errors into exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(_COMMANDS[cmd_name]), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        from t1_edge.cli.output import telling

        try:
            with telling():
                return super().invoke(ctx)
        except T1Error as e:
            raise click.ClickException(str(e)) from e
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


@click.command(cls=_Commands)
@click.version_option(__version__, prog_name="t1-edge")
def main() -> None:
    """A thinking text encoder on the machine in front of you.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
