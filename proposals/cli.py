"""The `aligndet` command: mounts each package's verbs, imports a half only when one of its verbs runs."""

import sys
from importlib.metadata import entry_points

import typer

from proposals.errors import AlignDetError


def build_app() -> typer.Typer:
    """The whole command: every package that declares an ``aligndet.verbs`` entry point adds its verbs."""
    app = typer.Typer(
        name="aligndet",
        help="Mine object proposals from unlabeled images, then pretrain a detector on them.",
        no_args_is_help=True,
        pretty_exceptions_show_locals=False,
        rich_markup_mode="rich",
    )
    for entry in sorted(entry_points(group="aligndet.verbs"), key=lambda e: e.name):
        entry.load()(app)
    return app


def register(app: typer.Typer) -> None:
    """Add floor 1's verbs (none of them needs Ray or torch)."""


def main() -> None:
    """Entry point of the console script."""
    try:
        build_app()()
    except AlignDetError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(error.exit_code)
