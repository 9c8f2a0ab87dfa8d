"""From what a user types to a source: which kind it is, when they do not say."""

from pathlib import Path, PurePosixPath

from pipeline.sources.base import Source
from pipeline.sources.folder import FolderSource
from pipeline.sources.listed import CocoSource, ListSource
from pipeline.sources.tables import ArrowSource, ParquetSource, image_column, read_schema
from pipeline.sources.tars import TarSource
from pipeline.sources.walk import has_image_suffix, walk
from proposals.errors import AlignDetError, MissingExtraError
from proposals.image_roots import Kind
from proposals.image_rows import can_hold_images
from proposals.paths import WEB, as_path, is_remote, is_there, scheme_of

_BY_SUFFIX: dict[str, Kind] = {
    ".txt": "list",
    ".csv": "list",
    ".tsv": "list",
    ".lst": "list",
    ".json": "coco",
    ".tar": "webdataset",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_CONTAINERS: dict[Kind, str] = {"webdataset": ".tar", "parquet": ".parquet", "arrow": ".arrow"}


def open_source(
    name: str,
    kind: Kind | None = None,
    *,
    glob: str | None = None,
    column: str | None = None,
    image_root: str | None = None,
) -> Source:
    """The source at the path or URL ``name``.

    kind: None guesses, by the suffix of a file and by what lies in a folder. ``name`` may hold braces, as
    ``train-{000..146}.tar``. glob: of image names, in folders and tars. column: of images, in tables. image_root:
    where relative names of a list or COCO json start, its own folder by default. Raises AlignDetError when there
    is nothing there, or nothing to decide the kind by.
    """
    if "{" in name:
        return _of_files(_expanded(name), kind, glob, column)
    path = as_path(name)
    place = path if is_remote(path) else _resolved(path)
    suffix = place.suffix.lower()
    if suffix in _BY_SUFFIX and not (not is_remote(place) and place.is_dir()):
        _require_file(place)
        return _of_file(place, kind or _BY_SUFFIX[suffix], glob, column, image_root)
    if scheme_of(name) in WEB:
        raise AlignDetError(
            f"{name}: a web server cannot be listed. Give a list of URLs, or tars by their names."
        )
    return _of_folder(place, kind or _guess(place), glob, column)


def _resolved(path: Path) -> Path:
    # Not through a link to a file: the caches of Hugging Face and DVC keep files under names without a suffix.
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def _of_file(place: Path, kind: Kind, glob: str | None, column: str | None, image_root: str | None) -> Source:
    if kind in ("list", "coco"):
        root = image_root or str(place.parent)
        cls = ListSource if kind == "list" else CocoSource
        return cls(place, root if scheme_of(root) else str(Path(root).resolve()))
    return _of_containers(str(place.parent), [place.name], kind, glob, column)


def _of_files(names: list[str], kind: Kind | None, glob: str | None, column: str | None) -> Source:
    guessed = kind or _BY_SUFFIX.get(PurePosixPath(names[0]).suffix.lower())
    if guessed not in _CONTAINERS:
        raise AlignDetError(f"{names[0]}: braces are for tars, Parquet and Arrow files.")
    places = [as_path(name) for name in names]
    folders = {str(place.parent if is_remote(place) else place.parent.resolve()) for place in places}
    if len(folders) > 1:
        raise AlignDetError("files named by braces must lie in one folder.")
    for place in places:
        _require_file(place)
    return _of_containers(folders.pop(), [place.name for place in places], guessed, glob, column)


def _of_folder(place: Path, kind: Kind, glob: str | None, column: str | None) -> Source:
    if kind == "folder":
        return FolderSource(place, glob)
    if kind not in _CONTAINERS:
        raise AlignDetError(f"{place} is a folder: a source of kind {kind} is a file.")
    files = [found.path for found in walk(place) if found.path.lower().endswith(_CONTAINERS[kind])]
    if not files:
        raise AlignDetError(f"{place} holds no {_CONTAINERS[kind]} file.")
    return _of_containers(str(place), files, kind, glob, column)


def _of_containers(root: str, files: list[str], kind: Kind, glob: str | None, column: str | None) -> Source:
    if kind == "webdataset":
        return TarSource(root, tuple(files), glob)
    cls = ArrowSource if kind == "arrow" else ParquetSource
    if column is not None:
        _require_column(root, files, column)
    return cls(root, tuple(files), column or _column_of(root, files))


def _require_column(root: str, files: list[str], column: str) -> None:
    """Raise AlignDetError when the first table that can be read has no ``column`` of images: a name mistyped."""
    for file in files:
        try:
            schema = read_schema(f"{root.rstrip('/')}/{file}")
        except MissingExtraError:
            raise
        except AlignDetError:
            continue  # listed as one image, which is rejected
        place = schema.get_field_index(column)
        if place < 0 or not can_hold_images(schema.field(place).type):
            raise AlignDetError(
                f"{file} has no column {column} that can hold images. It has {', '.join(schema.names)}. "
                "Say which: --image-column NAME"
            )
        return


def _column_of(root: str, files: list[str]) -> str:
    schema = read_schema(f"{root.rstrip('/')}/{files[0]}")
    found = image_column(schema)
    if found is None:
        raise AlignDetError(
            f"which column of {files[0]} holds the images? It has {', '.join(schema.names)}. "
            "Say it: --image-column NAME"
        )
    return found


def _guess(place: Path) -> Kind:
    if not is_remote(place) and not place.is_dir():
        raise AlignDetError(
            f"{place} is neither a folder nor a file that names or holds images. See --source-kind."
        )
    seen: set[Kind] = set()
    for found in walk(place):
        if has_image_suffix(found.path):
            return "folder"
        seen |= {kind for kind, suffix in _CONTAINERS.items() if found.path.lower().endswith(suffix)}
    if len(seen) > 1:
        raise AlignDetError(
            f"{place} holds no image file, but {' and '.join(sorted(seen))}: choose with --source-kind."
        )
    return seen.pop() if seen else "folder"


def _expanded(name: str) -> list[str]:
    from webdataset.shardlists import braceexpand

    names = list(braceexpand.braceexpand(name))
    return [one for one in names if one]


def _require_file(place: Path) -> None:
    if not is_there(place):
        raise AlignDetError(f"there is no file {place}.")
