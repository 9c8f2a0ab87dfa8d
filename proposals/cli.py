"""The `aligndet` command: mounts each package's verbs, imports a half only when one of its verbs runs."""

import errno
import sys
import traceback
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from proposals import cli_dataset
from proposals.cli_convert import convert
from proposals.cli_doctor import doctor
from proposals.cli_panels import CHANGE, INSTALLATION, LOOK, place_of
from proposals.cli_quality import recall, report, stats
from proposals.errors import AlignDetError, BrokenInstallationError
from proposals.terminal import harmless

_FAULT = 70


class _Verbs(TyperGroup):
    """The root command. ``ctx.obj``: what kept halves from adding their verbs, by half."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The verbs in the order of their headings."""
        return sorted(super().list_commands(ctx), key=lambda name: place_of(self.commands[name]))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The verb; for an unknown one, where a half could not be loaded, that instead of "no such command"."""
        found = super().get_command(ctx, cmd_name)
        if found is None and ctx.obj:
            raise BrokenInstallationError(
                f"no verb {cmd_name!r} here, and it may be one of those that could not be loaded: {_told(ctx.obj)}. "
                "Run `aligndet doctor`: it says what is broken and how to repair it"
            )
        return found


def build_app() -> typer.Typer:
    """The whole command: every package that declares an ``aligndet.verbs`` entry point adds its verbs.

    One that cannot be imported takes nothing with it but its own verbs.
    """
    app = typer.Typer(
        name="aligndet",
        cls=_Verbs,
        help="Mine object proposals from unlabeled images, then pretrain a detector on them.\n\n"
        "From pictures to a fine-tuned detector: mine, pretrain, export, finetune. `aligndet VERB --help` has an "
        "example of each.",
        no_args_is_help=True,
        pretty_exceptions_show_locals=False,
        rich_markup_mode="markdown",
    )
    broken: dict[str, str] = {}
    for entry in sorted(entry_points(group="aligndet.verbs"), key=lambda e: e.name):
        try:
            entry.load()(app)
        except Exception as error:  # whatever a broken half raises
            broken[entry.name] = f"{type(error).__name__}: {error}"
    epilog = f"Verbs are missing: {_told(broken)}. Run: aligndet doctor" if broken else None
    app.callback(epilog=epilog, context_settings={"obj": broken})(_root)
    return app


def _told(broken: dict[str, str]) -> str:
    return "; ".join(f"{half} ({why})" for half, why in broken.items())


def register(app: typer.Typer) -> None:
    """Add floor 1's verbs (none of them needs Ray or torch)."""
    app.command(rich_help_panel=LOOK)(show)
    app.command(rich_help_panel=LOOK)(stats)
    app.command(rich_help_panel=LOOK)(report)
    app.command(rich_help_panel=LOOK)(recall)
    cli_dataset.register(app)
    app.command(rich_help_panel=CHANGE)(convert)
    app.command(rich_help_panel=INSTALLATION)(doctor)
    app.command(rich_help_panel=INSTALLATION)(warmup)


def show(
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="Dataset folder or URL that `aligndet mine` wrote.")
    ],
    n: Annotated[int, typer.Option("--n", min=1, max=400, help="Images on the sheet.")] = 12,
    out: Annotated[Path, typer.Option(help="Picture to write; its suffix decides the format.")] = Path(
        "sheet.png"
    ),
    top: Annotated[int, typer.Option(min=0, max=10_000, help="Boxes drawn on each image, best first.")] = 10,
) -> None:
    """Draw a contact sheet: evenly spaced images of a dataset with their best boxes.

    Example: `aligndet show mined/ --n 12 --out sheet.png`
    """
    from proposals.dataset import open_dataset
    from proposals.outputs import require_outside_datasets
    from proposals.sheet import contact_sheet

    require_outside_datasets(out)
    opened = open_dataset(dataset)
    if not len(opened):
        raise AlignDetError(
            f"{dataset} holds no image: all of them were rejected, see {dataset / 'rejected.parquet'}."
        )
    sheet = contact_sheet(opened, n, top)
    try:
        sheet.save(out)
    except (OSError, ValueError) as error:
        way = "another place" if isinstance(error, OSError) else "a name that ends in .png or .jpg"
        raise AlignDetError(f"{out} cannot be written: {error}. Choose {way}.") from error
    typer.echo(f"{min(n, len(opened))} of {len(opened)} images, {sheet.width} x {sheet.height} px: {out}")


def warmup() -> None:
    """Compile the search ahead of the first image: in a container image, on every node, before a job.

    Kernels go to $ALIGNDET_CACHE_DIR, else $NUMBA_CACHE_DIR, else your cache directory; once there, a process loads
    them in less than a second instead of compiling for half a minute. Running it again does no work.

    Example: `ALIGNDET_CACHE_DIR=/opt/aligndet aligndet warmup`
    """
    # Every image needs that kernel as well, once it was searched; it is compiled while it is imported.
    from proposals import nms  # noqa: F401
    from proposals.selective_search.warmup import warm_up

    warmth = warm_up()
    if warmth.directory is None:
        raise AlignDetError(
            "no directory for compiled kernels can be written: every process will compile for itself. Set "
            "ALIGNDET_CACHE_DIR to one that can."
        )
    done = "compiled" if warmth.compiled else "already compiled, loaded"
    typer.echo(f"{done} in {warmth.seconds:.1f} s: {warmth.directory}")


def _root(
    version_wanted: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=lambda value: _print_version(value),
            help="Print the version.",
        ),
    ] = False,
) -> None:
    pass


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aligndet {version('aligndet')}")
        raise typer.Exit


def main() -> None:
    """Entry point of the console script. Ends the process; proposals.errors.EXIT_CODES says what the codes mean."""
    try:
        _require_utf8([*sys.argv[1:], _working_folder()])
        build_app()()
    except AlignDetError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno not in _USERS:
            _confess()
        where = " and ".join(str(name) for name in (error.filename, error.filename2) if name) or "a file"
        _fail(f"{where}: {error.strerror}. {_USERS[error.errno]}", AlignDetError.exit_code)
    except Exception:  # a fault of ours
        _confess()


def _require_utf8(names: list[str]) -> None:
    """Before anything is done: JSON, Parquet and logs could not hold such a name, at the end of a job as well."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise AlignDetError(
                f"{name!a} is not UTF-8, and no dataset can keep such a name. Rename it, or give a link to it "
                "that is"
            ) from error


def _working_folder() -> str:
    try:
        return str(Path.cwd())
    except OSError:  # gone: what needs it will say so
        return ""


# Causes outside this program, and what to do about them.
_USERS: dict[int | None, str] = {
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), "Choose another place, or change its permissions"
    ),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "Free some space, or choose another place"),
    **dict.fromkeys(
        (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
        "Is the name right?",
    ),
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN),
        "See to the disk or mount, then run the same command again",
    ),
}


def _confess() -> NoReturn:
    traceback.print_exc()
    _fail(
        "the lines above are a fault of aligndet, not of yours. Please report them and what `aligndet doctor` prints",
        _FAULT,
    )


def _fail(sentence: str, code: int) -> NoReturn:
    typer.secho(f"error: {harmless(sentence)}", fg="red", err=True)
    sys.exit(code)
