"""The verb that says which detectors can be pretrained, and what shows it. Needs neither torch nor mmdet."""

import json
from dataclasses import asdict
from itertools import groupby
from typing import Annotated

import typer

from aligndet_train import cli_options
from proposals.cli_panels import TRAIN


def register(app: typer.Typer) -> None:
    """Add `detectors` to the one command."""
    app.command(rich_help_panel=TRAIN)(detectors)


def detectors(
    as_json: cli_options.AsJson = False,
    refused: Annotated[
        bool, typer.Option("--refused", help="Instead, the configs that cannot be pretrained, and why.")
    ] = False,
) -> None:
    """List the detectors that can be pretrained: what ships, and which of mmdet's own configs were tried.

    Example: `aligndet detectors`
    """
    from rich.console import Console
    from rich.table import Table

    from aligndet_train.zoo import OF_MMDET, zoo_table

    zoo = zoo_table()
    if as_json:
        typer.echo(json.dumps({"shipped": _shipped(), **asdict(zoo)}, indent=1))
        return
    console = Console()
    passed = [trial for trial in zoo.trials if trial.passed]
    if refused:
        table = Table("stock config", "why not", title="Cannot be pretrained")
        for trial in zoo.trials:
            if not trial.passed:
                table.add_row(trial.config.removesuffix(".py"), trial.reason)
    else:
        console.print(f"--detector NAME: {', '.join(_shipped())}", soft_wrap=True)
        console.print(
            "--config FILE: your own, on top of a stock one of these families. The whole of it may be the line "
            + OF_MMDET,
            soft_wrap=True,
        )
        table = Table("adapter", "stock configs converted, trained, exported and loaded", title="mmdet's zoo")
        for adapter, trials in groupby(
            sorted(passed, key=lambda t: str(t.adapter)), key=lambda t: str(t.adapter)
        ):
            table.add_row(adapter, ", ".join(trial.config.removesuffix(".py") for trial in trials))
    console.print(table)
    versions = ", ".join(f"{name} {version}" for name, version in zoo.versions.items())
    console.print(
        f"{len(passed)} of {len(zoo.trials)} configs passed on {zoo.date} ({versions}), two steps each."
    )


def _shipped() -> list[str]:
    from pathlib import Path

    configs = Path(__file__).parent / "configs"
    return sorted(path.stem for path in configs.glob("*.py") if not path.stem.startswith("_"))
