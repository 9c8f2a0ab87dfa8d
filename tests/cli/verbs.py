"""Every verb of the command, nested ones as "group verb", and their help as a terminal of fixed width shows it."""

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import typer
from typer.testing import CliRunner

from proposals.cli import build_app

SNAPSHOTS = Path(__file__).parent / "snapshots"
_TERMINAL = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}


def verbs() -> list[str]:
    """All of them, "" for the command itself."""
    return ["", *_below(typer.main.get_command(build_app()), "")]


def _below(group: object, prefix: str) -> Iterator[str]:
    for name, command in getattr(group, "commands", {}).items():
        yield f"{prefix}{name}"
        yield from _below(command, f"{prefix}{name} ")


def help_of(verb: str) -> str:
    """What ``aligndet VERB --help`` prints, spaces at the ends of lines left out."""
    with mock.patch.dict(os.environ, _TERMINAL):
        result = CliRunner().invoke(
            build_app(), [*verb.split(), "--help"], prog_name="aligndet", env=_TERMINAL
        )
    assert result.exit_code == 0, result.output
    return "\n".join(line.rstrip() for line in result.output.strip().splitlines()) + "\n"


def snapshot(verb: str) -> Path:
    """The file of a verb's help."""
    return SNAPSHOTS / f"{verb.replace(' ', '_') or 'aligndet'}.txt"


def main() -> None:
    """``python -m tests.cli.verbs``: write the snapshots anew."""
    SNAPSHOTS.mkdir(exist_ok=True)
    for old in SNAPSHOTS.glob("*.txt"):
        old.unlink()
    for verb in verbs():
        snapshot(verb).write_text(help_of(verb))
    print(f"{len(verbs())} snapshots in {SNAPSHOTS}")


if __name__ == "__main__":
    main()
