"""dataset.json, the commit records it is made from, and the versions a dataset depends on."""

from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from proposals.dataset import layout
from proposals.dataset.files import file_sha256, write_atomically
from proposals.errors import AlignDetError
from proposals.filters import Status
from proposals.recipe import Recipe

FORMAT_NAME = "aligndet-proposals"
FORMAT_VERSION = "1.0"
_MAJOR = int(FORMAT_VERSION.split(".")[0])

Model = TypeVar("Model", bound=BaseModel)


class FileEntry(BaseModel):
    """One file of the dataset: its path below the dataset folder, its size in bytes and its sha256."""

    model_config = ConfigDict(frozen=True)

    path: str
    bytes: int = Field(ge=0)
    sha256: str

    @classmethod
    def of(cls, root: Path, path: Path) -> "FileEntry":
        """The entry of ``path``, which lies below ``root``."""
        return cls(
            path=path.relative_to(root).as_posix(), bytes=path.stat().st_size, sha256=file_sha256(path)
        )


class ShardEntry(BaseModel):
    """One shard: how many images and boxes, and its files. A shard without an image has no files."""

    model_config = ConfigDict(frozen=True)

    name: str
    images: int = Field(ge=0)
    proposals: int = Field(ge=0)
    statuses: dict[Status, int]
    tar: FileEntry | None
    parquet: FileEntry | None


class Rejection(BaseModel):
    """An image that gave no row. ``reason`` is a stable word, ``detail`` a sentence; see ImageRejected."""

    model_config = ConfigDict(frozen=True)

    key: str
    uri: str
    stage: str
    reason: str
    detail: str
    traceback_hash: str


class CommitRecord(BaseModel):
    """``shards/NNNNN.json``: proof that a shard is complete, and what it cost (seconds per stage)."""

    model_config = ConfigDict(frozen=True)

    format_version: str = FORMAT_VERSION
    job: str
    shard: ShardEntry
    rejected: tuple[Rejection, ...]
    timing: dict[str, float]
    versions: dict[str, str]


class SourceInfo(BaseModel):
    """Where the images came from: the kind of source, how many it lists, a hash of their names and sizes."""

    model_config = ConfigDict(frozen=True)

    kind: str
    images: int = Field(ge=0)
    fingerprint: str


class Totals(BaseModel):
    """Sums over all shards. ``bytes``: tar and Parquet files together."""

    model_config = ConfigDict(frozen=True)

    images: int
    proposals: int
    rejected: int
    bytes: int
    statuses: dict[Status, int]


class Manifest(BaseModel):
    """``dataset.json``, written last. Unknown fields are those of a newer minor version and are ignored."""

    model_config = ConfigDict(frozen=True)

    format: Literal["aligndet-proposals"] = "aligndet-proposals"
    format_version: str = FORMAT_VERSION
    recipe: Recipe
    recipe_fingerprint: str
    source: SourceInfo
    images_per_shard: int
    versions: dict[str, str]
    totals: Totals
    plan: FileEntry
    rejected: FileEntry
    shards: tuple[ShardEntry, ...]


def library_versions() -> dict[str, str]:
    """The libraries, and the OpenCV CPU level, on which boxes and file bytes depend."""
    from proposals.opencv import build_identity

    opencv = build_identity()
    libraries = {name: version(name) for name in ("numpy", "pillow", "pyarrow")}
    return {**libraries, "opencv": opencv["version"], "opencv_dispatch": opencv["dispatch"]}


def write_model(path: Path, model: BaseModel) -> None:
    """Write ``model`` as indented JSON, atomically."""
    write_atomically(path, (model.model_dump_json(indent=1) + "\n").encode())


def read_model(path: Path, model: type[Model]) -> Model:
    """Read a JSON file written by `write_model`; raises AlignDetError when it is damaged."""
    try:
        return model.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        raise AlignDetError(f"{path} cannot be read as {model.__name__}: {error}") from error


def read_manifest(root: Path) -> Manifest:
    """The manifest of the dataset folder ``root``.

    Raises AlignDetError when there is none (saying whether the folder is still in progress), when it is damaged,
    or when a newer major format wrote it.
    """
    path = root / layout.MANIFEST
    if not path.is_file():
        raise AlignDetError(_why_no_manifest(root))
    _check_format(path)
    return read_model(path, Manifest)


class _Format(BaseModel):
    format: str = ""
    format_version: str = Field(default="", pattern=r"^\d+\.\d+$")


def _check_format(path: Path) -> None:
    found = read_model(path, _Format)
    if found.format != FORMAT_NAME:
        raise AlignDetError(f"{path} is not the manifest of a proposal dataset (format {found.format!r}).")
    if int(found.format_version.split(".")[0]) > _MAJOR:
        raise AlignDetError(
            f"{path} has format version {found.format_version}, newer than the {FORMAT_VERSION} this installation "
            "reads. Upgrade it: pip install --upgrade aligndet"
        )


def _why_no_manifest(root: Path) -> str:
    if not (root / layout.PLAN).is_file():
        return f"{root} is not a proposal dataset: it holds no {layout.MANIFEST}. Make one: aligndet mine IMAGES {root}"
    done = sum(1 for _ in (root / layout.SHARDS).glob("*.json"))
    return (
        f"{root} is in progress, not a dataset: {done} shards are done and {layout.MANIFEST} is not written yet. "
        f"Run the same `aligndet mine IMAGES {root}` again to resume."
    )
