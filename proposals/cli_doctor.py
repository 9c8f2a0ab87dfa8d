"""The verb `doctor`, which must work when nothing else does: it imports the standard library and typer."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from proposals.errors import BrokenInstallationError

if TYPE_CHECKING:
    from proposals.health import Check, HalfHealth

_COLOURS = {"ok": "green", "missing": "cyan", "warning": "yellow", "broken": "red"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Look at the installation: versions, GPU, OpenCV's build, compiled kernels, and what is missing or broken.

    Every finding has its repair. Exit 0 when all that is installed works; an optional half that is not installed is
    missing, not broken. Put its output into bug reports.

    Example: `aligndet doctor`
    """
    from proposals.health import examine, is_healthy

    halves = examine()
    healthy = is_healthy(halves)
    if as_json:
        content = {"healthy": healthy, "halves": {h.half: [asdict(c) for c in h.checks] for h in halves}}
        typer.echo(json.dumps(content, indent=1))
    else:
        _print(halves, healthy)
    if not healthy:
        raise typer.Exit(BrokenInstallationError.exit_code)


def _print(halves: "list[HalfHealth]", healthy: bool) -> None:
    for half in halves:
        typer.echo(half.half)
        for check in half.checks:
            _print_check(check)
    broken = [check.name for half in halves for check in half.checks if check.status == "broken"]
    typer.echo("healthy" if healthy else f"broken: {', '.join(broken)}. The lines above say how to repair it")


def _print_check(check: "Check") -> None:
    typer.echo("  " + typer.style(f"{check.status:8}", fg=_COLOURS[check.status]), nl=False)
    typer.echo(f"{check.name:18} {check.found}")
    if check.repair:
        typer.echo(f"{'':10}repair: {check.repair}")
