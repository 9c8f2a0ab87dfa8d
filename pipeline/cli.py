"""Verbs of this half, light to import: the heavy packages are imported when a verb runs."""

import typer


def register(app: typer.Typer) -> None:
    """Add this half's verbs to the one command."""
