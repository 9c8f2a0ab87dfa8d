"""From what a user types to a source: which kind it is, when they do not say."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from pipeline.sources.base import Source, as_text
from pipeline.sources.compressed import has_compressed_suffix, refuse_compressed
from pipeline.sources.datasets_inside import datasets_among, is_sign, outside
from pipeline.sources.folder import FolderSource
from pipeline.sources.listed import CocoSource, ListSource
from pipeline.sources.tables import ArrowSource, ParquetSource, image_column, read_schema
from pipeline.sources.tars import TarSource
from pipeline.sources.walk import Found, walk
from proposals.errors import AlignDetError, MissingExtraError
from proposals.image_roots import Kind
from proposals.image_rows import can_hold_images
from proposals.images import has_image_suffix
from proposals.paths import as_path, is_remote, is_there, is_web, real_path, scheme_of

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
_OF_A_SAVED_DATASET = "state.json"


@dataclass
class _Survey:
    """What tells what a folder is to mine, as paths below it, in their order.

    containers: tars and tables. telling: files whose names say of what their folder is. compressed: the first such
    file. image: whether there is one, behind which nothing was looked at.
    """

    containers: list[str] = field(default_factory=list)
    telling: list[str] = field(default_factory=list)
    compressed: str | None = None
    image: bool = False


def open_source(
    name: str,
    kind: Kind | None = None,
    *,
    glob: str | None = None,
    column: str | None = None,
    image_root: str | None = None,
    out: Path | None = None,
) -> Source:
    """The source at the path or URL ``name``.

    kind: None guesses, by the suffix of a file and by what lies in a folder. ``name`` may hold braces, as
    ``train-{000..146}.tar``. glob: of image names, in folders and tars. column: of images, in tables. image_root:
    where relative names of a list or COCO json start, its own folder by default. out: a folder whose tars and tables
    are no part of the source; nor are those of datasets below a folder, which its ``left_out`` names. Raises
    AlignDetError when there is nothing there, or something compressed, nothing to decide the kind by, or an option
    that this kind has no use for.
    """
    source = _opened(name, kind, glob, column, image_root, out)
    for option, value, kinds in (
        ("--glob", glob, ("folder", "webdataset")),
        ("--image-column", column, ("parquet", "arrow")),
        ("--image-root", image_root, ("list", "coco")),
    ):
        if value is not None and source.kind not in kinds:
            raise AlignDetError(
                f"{option} {value} is for sources of kind {' and '.join(kinds)}, and {name} is of kind {source.kind}."
            )
    return source


def _opened(
    name: str,
    kind: Kind | None,
    glob: str | None,
    column: str | None,
    image_root: str | None,
    out: Path | None,
) -> Source:
    path = as_path(name)
    if "{" in name and (is_remote(path) or not path.exists()):
        return _of_files(_expanded(name), kind, glob, column)
    place = path if is_remote(path) else _resolved(path)
    if kind in (None, *_CONTAINERS) and not name.endswith("/") and (is_remote(place) or place.is_file()):
        refuse_compressed(str(place))
    found = _BY_SUFFIX.get(place.suffix.lower())
    if _is_file(name, place, kind or found, found):
        _require_file(place)
        return _of_file(place, kind or found or "folder", glob, column, image_root)
    if is_web(name):
        raise AlignDetError(
            f"{name}: a web server cannot be listed. Give a list of URLs, or tars by their names."
        )
    return _of_folder(place, kind, glob, column, out)


def _is_file(name: str, place: Path, kind: Kind | None, by_suffix: Kind | None) -> bool:
    """Whether ``place`` is one file, or named like one. Spark names folders so, and ends them with a slash."""
    if is_remote(place):
        return by_suffix is not None and not name.endswith("/")
    return not place.is_dir() and (by_suffix is not None or (kind is not None and place.is_file()))


def _resolved(path: Path) -> Path:
    # Not through a link to a file: the caches of Hugging Face and DVC keep files under names without a suffix.
    return real_path(path) if path.is_dir() else real_path(path.parent) / path.name


def _of_file(place: Path, kind: Kind, glob: str | None, column: str | None, image_root: str | None) -> Source:
    if kind == "folder":
        raise AlignDetError(f"{place} is a file: a source of kind folder is a folder.")
    if kind in ("list", "coco"):
        root = image_root or str(place.parent)
        cls = ListSource if kind == "list" else CocoSource
        return cls(place, root if scheme_of(root) else str(real_path(Path(root))))
    return _of_containers(str(place.parent), [place.name], kind, glob, column)


def _of_files(names: list[str], kind: Kind | None, glob: str | None, column: str | None) -> Source:
    refuse_compressed(names[0])
    guessed = kind or _BY_SUFFIX.get(PurePosixPath(names[0]).suffix.lower())
    if guessed not in _CONTAINERS:
        raise AlignDetError(f"{names[0]}: braces are for tars, Parquet and Arrow files.")
    places = [as_path(name) for name in names]
    folders = {str(place.parent if is_remote(place) else real_path(place.parent)) for place in places}
    if len(folders) > 1:
        raise AlignDetError("files named by braces must lie in one folder.")
    for place in places:
        _require_file(place)
    return _of_containers(folders.pop(), [place.name for place in places], guessed, glob, column)


def _of_folder(
    place: Path, kind: Kind | None, glob: str | None, column: str | None, out: Path | None
) -> Source:
    if kind not in (None, "folder", *_CONTAINERS):
        raise AlignDetError(f"{place} is a folder: a source of kind {kind} is a file.")
    if kind is None and not is_remote(place) and not place.is_dir():
        raise AlignDetError(
            f"{place} is neither a folder nor a file that names or holds images. See --source-kind."
        )
    there = _Survey() if kind == "folder" else _surveyed(place, out, until_image=kind is None)
    kind = kind or _guess(place, there)
    if kind == "folder":
        return FolderSource(place, glob)
    found = [path for path in there.containers if path.lower().endswith(_CONTAINERS[kind])]
    if kind == "arrow":
        found = _without_caches(found, there.telling)
    datasets = datasets_among(place, there.telling, found)
    files = outside(found, datasets)
    if not files:
        raise _nothing_in(place, _CONTAINERS[kind], there.compressed, datasets)
    return replace(_of_containers(str(place), files, kind, glob, column), left_out=datasets)


def _surveyed(place: Path, out: Path | None, *, until_image: bool) -> _Survey:
    """The one walk through ``place``; ``until_image``: it ends at the first."""
    there = _Survey()
    for found in _walked(place, out):
        path = found.path
        if until_image and has_image_suffix(path):
            there.image = True
            break
        if path.lower().endswith(tuple(_CONTAINERS.values())):
            there.containers.append(path)
        if is_sign(path) or PurePosixPath(path).name == _OF_A_SAVED_DATASET:
            there.telling.append(path)
        if there.compressed is None and has_compressed_suffix(path):
            there.compressed = path
    return there


def _nothing_in(place: Path, suffix: str, compressed: str | None, datasets: Sequence[str]) -> AlignDetError:
    if datasets:
        why = f" but those of datasets that were mined: {', '.join(datasets[:3])}. Name one to mine its images again"
    elif compressed is not None:
        why = f", and {compressed} is compressed. Decompress it"
    else:
        why = ""
    return AlignDetError(f"{place} holds no {suffix} file{why}.")


def _walked(place: Path, out: Path | None) -> Iterator[Found]:
    """The files below ``place``, but for those of a job whose folder lies there as well."""
    inside = None if out is None else _below(place, out)
    without = None if out is None or is_remote(out) else out
    return (
        found for found in walk(place, without) if inside is None or not found.path.startswith(f"{inside}/")
    )


def _below(place: Path, out: Path) -> str | None:
    """The path of ``out`` below ``place``, with forward slashes; None where it is not there."""
    if is_remote(place) != is_remote(out):
        return None
    if not is_remote(place):
        place, out = place.resolve(), out.resolve()
    above, inner = str(place).rstrip("/") + "/", str(out).rstrip("/")
    return as_text(inner.removeprefix(above)) if inner.startswith(above) else None


def _without_caches(files: list[str], telling: list[str]) -> list[str]:
    """``files`` but for what `datasets` keeps of .map and .filter beside a dataset that it saved."""
    places = map(PurePosixPath, telling)
    saved = {str(place.parent) for place in places if place.name == _OF_A_SAVED_DATASET}
    return [
        file
        for file in files
        if str(PurePosixPath(file).parent) not in saved or not PurePosixPath(file).name.startswith("cache-")
    ]


def _of_containers(
    root: str, files: list[str], kind: Kind, glob: str | None, column: str | None
) -> TarSource | ParquetSource:
    _require_suffix(root, files, kind)
    if kind == "webdataset":
        return TarSource(root, tuple(files), glob)
    cls = ArrowSource if kind == "arrow" else ParquetSource
    if column is not None:
        _require_column(root, files, column)
    return cls(root, tuple(files), column or _column_of(root, files))


def _require_suffix(root: str, files: list[str], kind: Kind) -> None:
    # The uri of an image names its container, and readers find where that ends by the suffix.
    for file in files:
        if not file.lower().endswith(_CONTAINERS[kind]):
            raise AlignDetError(
                f"{root.rstrip('/')}/{file}: a file of kind {kind} has a name that ends with {_CONTAINERS[kind]}. "
                "Rename it, or make a link with such a name."
            )


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


def _guess(place: Path, there: _Survey) -> Kind:
    if there.image:
        return "folder"
    files = there.containers
    seen = _kinds(outside(files, datasets_among(place, there.telling, files))) or _kinds(files)
    if len(seen) > 1:
        raise AlignDetError(
            f"{place} holds no image file, but {' and '.join(sorted(seen))}: choose with --source-kind."
        )
    if there.compressed is not None and not seen:
        refuse_compressed(f"{place}/{there.compressed}")
    return seen.pop() if seen else "folder"


def _kinds(files: list[str]) -> set[Kind]:
    return {kind for kind, suffix in _CONTAINERS.items() if any(f.lower().endswith(suffix) for f in files)}


def _expanded(name: str) -> list[str]:
    from webdataset.shardlists import braceexpand

    try:
        return [one for one in braceexpand.braceexpand(name) if one]
    except ValueError as error:
        raise AlignDetError(
            f"{name}: its braces do not close, and there is nothing of that name. As in train-{{000..146}}.tar"
        ) from error


def _require_file(place: Path) -> None:
    if not is_there(place):
        raise AlignDetError(f"there is no file {place}.")
