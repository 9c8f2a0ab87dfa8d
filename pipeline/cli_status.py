"""`aligndet status`: what a job has done, whether it runs, and when it will be finished. Needs no Ray."""

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from proposals.errors import UnansweredError

if TYPE_CHECKING:
    from pipeline.status import JobStatus

_WATCH_SECONDS = 5.0
_SHOWN = 10


def status(
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="Folder or URL that `aligndet mine` writes, or wrote.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON, on one line.")] = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Print it every five seconds, until the job does not run any more."),
    ] = False,
) -> None:
    """Show how far a mining job is: shards done, running and failed, images per second, time left, slowest stage.

    It reads a few small files of OUT and nothing else, so it works from any machine that sees the folder, while the
    job runs and afterwards.

    Example: `aligndet status mined/ --watch`
    """
    from pipeline.status import StatusReader
    from proposals.paths import as_path

    reader = StatusReader(as_path(out))
    running = False
    while True:
        try:
            found = reader.read()
        except UnansweredError as error:
            if not running:
                raise
            typer.echo(f"warning: {error}", err=True)
        else:
            typer.echo(json.dumps(found.as_json()) if as_json else "\n".join(_lines(found, out)))
            running = found.state == "running"
        if not watch or not running:
            return
        time.sleep(_WATCH_SECONDS)


def _lines(status: "JobStatus", out: str) -> list[str]:
    done = status.images + status.rejected
    share = 100 * done / max(status.planned, 1)
    lines = [
        f"{out}: {_STATES[status.state]}{'' if status.listed else _UNLISTED}",
        f"  images   {done:,} of {status.planned:,} ({share:.1f} %), {status.proposals:,} boxes",
        f"  shards   {status.shards_done:,} of {status.shards:,} done, {len(status.running):,} in flight, "
        f"{len(status.failed):,} failed",
        f"  rejected {status.rejected:,}" + _listed(status.reasons),
    ]
    if status.rate is not None and status.eta is not None:
        lines.append(f"  speed    {status.rate:.1f} images/s, {_duration(status.eta)} left")
    if status.slowest_stage is not None:
        total = sum(status.stages.values())
        shares = {stage: f"{100 * seconds / total:.0f} %" for stage, seconds in status.stages.items()}
        lines.append(f"  slowest  {status.slowest_stage}{_listed(shares)}")
    lines += [f"  shard {name} failed: {reason}" for name, reason in list(status.failed.items())[:_SHOWN]]
    return lines


_STATES = {
    "finished": "finished",
    "running": "running",
    "stopped": "not running, not finished: run the same `aligndet mine` again to resume",
}

_UNLISTED = ", complete by its dataset.json (its server does not list folders, so nobody looked for more)"


def _listed(values: "dict[str, int] | dict[str, str]") -> str:
    parts = ", ".join(f"{name} {value}" for name, value in list(values.items())[:_SHOWN])
    return f" ({parts})" if parts else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
