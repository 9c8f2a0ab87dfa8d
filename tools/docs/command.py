"""The `aligndet` command as an object, which is what Typer's documentation writer asks for."""

from proposals.cli import build_app

app = build_app()
