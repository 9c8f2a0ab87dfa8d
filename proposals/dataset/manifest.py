"""dataset.json, the commit records it is made from, and the versions a dataset depends on."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from proposals.dataset import bounds, layout
from proposals.dataset.files import (
    NotListedError,
    alone_with,
    file_sha256,
    remove_leftovers,
    sizes_in,
    write_atomically,
)
from proposals.dataset.seal import seal, seal_state
from proposals.errors import AlignDetError, NewerFormatError
from proposals.filter_spec import STATUSES, Status
from proposals.image_roots import ImageRoot
from proposals.paths import as_path, is_remote, is_there, is_web
from proposals.recipe import Recipe

FORMAT_NAME = "aligndet-proposals"
FORMAT_VERSION = "1.1"  # the newest that is read
EMBEDDED_VERSION = "1.0"  # what is written where the images are in tars, so that older readers read it
_MANIFEST_BYTES = 2**20  # of dataset.json without its shards, at most
_MAX_FILE_BYTES = 10**13 - 1
# Seconds: longer than any write of dataset.json takes.
_ABANDONED_AFTER = 3600
_UPGRADE = "Upgrade it: git pull in its clone, then pip install ."

Model = TypeVar("Model", bound=BaseModel)
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Version = Annotated[str, Field(pattern=r"^[0-9]{1,9}\.[0-9]{1,9}$")]
Counts = dict[Status, Annotated[int, Field(ge=0, le=bounds.MAX_IMAGES)]]


class FileEntry(BaseModel):
    """One file of the dataset: its path below the dataset folder, its size in bytes and its sha256."""

    model_config = ConfigDict(frozen=True)

    path: str
    bytes: int = Field(ge=0, le=2**62)
    sha256: Sha256

    @classmethod
    def of(cls, root: Path, path: Path, content: Path | None = None) -> "FileEntry":
        """The entry of ``path``, which lies below ``root``; its content is that of ``content``, if given."""
        found = content or path
        name = path.relative_to(root).as_posix()
        return cls(path=name, bytes=found.stat().st_size, sha256=file_sha256(found))


class ShardEntry(BaseModel):
    """One shard: how many images and boxes, and its files. A shard without an image has no files."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(pattern=r"^[0-9]{5,9}$")
    images: int = Field(ge=0, le=bounds.MAX_SHARD_IMAGES)
    proposals: int = Field(ge=0, le=bounds.MAX_SHARD_PROPOSALS)
    statuses: Counts
    tar: FileEntry | None
    parquet: FileEntry | None

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """The tar and the Parquet file, or nothing."""
        return tuple(entry for entry in (self.tar, self.parquet) if entry is not None)

    @model_validator(mode="after")
    def _is_possible(self) -> "ShardEntry":
        kinds = ("tar", "parquet") if self.tar is not None else ("parquet",)
        expected = [f"{layout.SHARDS}/{self.name}.{kind}" for kind in kinds if self.images]
        if [entry.path for entry in self.files] != expected:
            raise ValueError(f"shard {self.name} of {self.images} images must have the files {expected}")
        if sum(self.statuses.values()) != self.images or (self.proposals > 0) != (self.images > 0):
            raise ValueError(f"shard {self.name}: images, statuses and proposals do not add up")
        if not self._has_room():
            raise ValueError(f"shard {self.name}: its files are too small to hold what it declares")
        return self

    def _has_room(self) -> bool:
        if self.tar is not None:
            room = self.tar.bytes
            return (
                self.images * bounds.MIN_IMAGE_BYTES <= room and self.proposals * bounds.MIN_BOX_BYTES <= room
            )
        room = self.parquet.bytes if self.parquet is not None else 0
        return bounds.has_room(room, self.images, self.proposals)


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

    format_version: Version = EMBEDDED_VERSION
    job: str
    shard: ShardEntry
    rejected: tuple[Rejection, ...]
    timing: dict[str, float]
    versions: dict[str, str]


# Begins the kind of a source whose boxes were imported.
IMPORTED = "import-"


class SourceInfo(BaseModel):
    """Where the images came from: the kind of source, how many it lists, a hash of their names and sizes.

    column: that of the images, in tables; None also in datasets made before it was written down.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    images: int = Field(ge=0, le=bounds.MAX_IMAGES)
    fingerprint: str
    column: str | None = None

    @property
    def imported(self) -> bool:
        """Whether the boxes are another program's: the recipe was declared then, not run."""
        return self.kind.startswith(IMPORTED)

    @model_serializer(mode="wrap")
    def _without_absent_column(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = write(self)
        if self.column is None:
            content.pop("column", None)
        return content

    @classmethod
    def of(cls, kind: str, listed: Iterable[tuple[str, int]]) -> "SourceInfo":
        """Of a source that lists these (uri, size in bytes): the same ones give the same fingerprint."""
        digest, images = hashlib.sha256(), 0
        for uri, size in listed:
            digest.update(f"{uri}\0{size}\n".encode())
            images += 1
        return cls(kind=kind, images=images, fingerprint=digest.hexdigest())


class Totals(BaseModel):
    """Sums over all shards. ``bytes``: tar and Parquet files together."""

    model_config = ConfigDict(frozen=True)

    images: int = Field(ge=0, le=bounds.MAX_IMAGES)
    proposals: int = Field(ge=0)
    rejected: int = Field(ge=0, le=bounds.MAX_IMAGES)
    bytes: int = Field(ge=0)
    statuses: Counts


class Manifest(BaseModel):
    """``dataset.json``, written last. Unknown fields are those of a newer minor version and are ignored.

    consolidated: the files of proposals.zarr, empty when there is none. images: where they are when they are not
    in the shards' tars, None when they are.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal["aligndet-proposals"] = "aligndet-proposals"
    format_version: str = EMBEDDED_VERSION
    recipe: Recipe
    recipe_fingerprint: Sha256
    source: SourceInfo
    images_per_shard: int = Field(ge=1, le=bounds.MAX_SHARD_IMAGES)
    versions: dict[str, str]
    totals: Totals
    plan: FileEntry
    rejected: FileEntry
    shards: tuple[ShardEntry, ...]
    consolidated: tuple[FileEntry, ...] = ()
    images: ImageRoot | None = None

    @model_serializer(mode="wrap")
    def _without_absent_images(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = write(self)
        if self.images is None:
            del content["images"]
        return content

    @model_validator(mode="after")
    def _adds_up(self) -> "Manifest":
        if [shard.name for shard in self.shards] != [layout.shard_name(i) for i in range(len(self.shards))]:
            raise ValueError("the shards are not numbered 0, 1, 2 and so on")
        if (self.plan.path, self.rejected.path) != (layout.PLAN, layout.REJECTED):
            raise ValueError(f"plan and rejected must be {layout.PLAN} and {layout.REJECTED}")
        if not all(layout.is_consolidated_path(entry.path) for entry in self.consolidated):
            raise ValueError(f"consolidated names a file outside {layout.CONSOLIDATED}")
        if any((shard.tar is None) != (self.images is not None) for shard in self.shards if shard.images):
            raise ValueError("shards have tars exactly where images does not say that they are elsewhere")
        totals, shards = self.totals, self.shards
        declared = totals.images, totals.proposals, totals.images + totals.rejected
        sums = sum(shard.images for shard in shards), sum(shard.proposals for shard in shards)
        if declared != (*sums, self.source.images):
            raise ValueError("totals are not the sums over the shards and the rejected images")
        return self


def library_versions() -> dict[str, str]:
    """The libraries, the OpenCV CPU level and our own decoding, on which boxes and file bytes depend."""
    from proposals.images import DECODING
    from proposals.opencv import build_identity

    opencv = build_identity()
    libraries = {name: version(name) for name in ("numpy", "pillow", "pyarrow")}
    own = {"opencv": opencv["version"], "opencv_dispatch": opencv["dispatch"], "decoding": DECODING}
    return {**libraries, **own}


@contextmanager
def committing(root: Path) -> Iterator[None]:
    """Where dataset.json of ``root`` is written, by one process after the other, see `alone_with`.

    What one that was killed had half written of it is removed after an hour: not every file server's lock keeps
    another machine's process, which may still write, out.
    """
    with alone_with(root):
        if not is_remote(root):
            # Another one may remove them first, and no commit fails for what it cannot tidy up.
            with suppress(OSError):
                remove_leftovers(root, of=(layout.MANIFEST,), untouched_for=_ABANDONED_AFTER)
        yield


def write_model(path: Path, model: BaseModel) -> None:
    """Write ``model`` as indented JSON with a seal, atomically; raises AlignDetError when no reader would accept it."""
    data = seal(model.model_dump_json(indent=1).encode() + b"\n")
    limit = bounds.MAX_MANIFEST_BYTES if isinstance(model, Manifest) else bounds.MAX_RECORD_BYTES
    if len(data) > limit:
        less = "more" if isinstance(model, Manifest) else "fewer"
        raise AlignDetError(
            f"{path} would have {len(data)} bytes, more than the {limit} that are read. Mine into a new folder with "
            f"{less} images in a shard: --images-per-shard"
        )
    write_atomically(path, data)


def require_listable(shards: int, images: int, images_per_shard: int) -> None:
    """Raise AlignDetError when dataset.json cannot list so many shards, naming images a shard that make fewer."""
    room = bounds.MAX_MANIFEST_BYTES - _MANIFEST_BYTES
    fit = room // shard_entry_bytes(shards, images_per_shard)
    if shards > fit:
        needed = -(-images // max(1, room // shard_entry_bytes(shards, bounds.MAX_SHARD_IMAGES)))
        raise AlignDetError(
            f"{images} images make {shards} shards, more than the {fit} that dataset.json can list. Mine into a new "
            f"folder with --images-per-shard {needed} or more."
        )


def shard_entry_bytes(shards: int, images_per_shard: int) -> int:
    """The most that one of ``shards`` shards takes in dataset.json."""
    name, each = layout.shard_name(max(0, shards - 1)), images_per_shard
    files = {
        kind: FileEntry(path=f"{layout.SHARDS}/{name}.{kind}", bytes=_MAX_FILE_BYTES, sha256="0" * 64)
        for kind in ("tar", "parquet")
    }
    statuses = dict.fromkeys(STATUSES, each)
    counts = {"images": each, "proposals": bounds.MAX_SHARD_PROPOSALS, "statuses": statuses}
    entry = ShardEntry.model_construct(None, name=name, **counts, **files)
    text = entry.model_dump_json(indent=1)
    return (
        len(text) + 2 * (text.count("\n") + 1) + 2
    )  # it is two levels deep, and ends in a comma and a newline


def read_record(path: Path) -> CommitRecord:
    """The commit record in ``path``; raises AlignDetError when it is damaged or too large."""
    return _parse(path, bounds.read_bounded(path, bounds.MAX_RECORD_BYTES), CommitRecord)


def committed_record(root: Path, shard: ShardEntry) -> CommitRecord:
    """The commit record of a shard that the manifest in ``root`` lists; raises AlignDetError when it is another one."""
    record = read_record(layout.record_path(root, shard.name))
    if record.shard != shard:
        raise AlignDetError(
            f"shard {shard.name} of {root} is damaged: its record is not the one that {layout.MANIFEST} has. "
            f"`aligndet verify {root}` tells what is wrong, and with --repair mends it."
        )
    return record


def read_manifest(root: Path) -> Manifest:
    """The manifest of the dataset folder ``root``.

    Raises AlignDetError when there is none (saying whether the folder is still in progress) or when it is damaged;
    NewerFormatError when a newer major format wrote it, or a newer minor one that cannot be read.
    """
    path = as_path(root) / layout.MANIFEST
    if not is_there(path):
        raise AlignDetError(_why_no_manifest(root))
    data = bounds.read_bounded(path, bounds.MAX_MANIFEST_BYTES)
    version = _check_format(path, data)
    try:
        return _parse(path, data, Manifest)
    except AlignDetError as error:
        if is_newer(version) and seal_state(data) == "intact":
            raise NewerFormatError(
                f"{error} Its format version is {version}, newer than {FORMAT_VERSION}. {_UPGRADE}"
            ) from error
        raise


def is_newer(version: str) -> bool:
    """Whether format ``version``, such as ``1.4``, came after the one this installation writes."""
    return _numbers(version) > _numbers(FORMAT_VERSION)


def refuse_newer(path: Path, version: str, doing: str) -> None:
    """Raise NewerFormatError when ``path``, of format ``version``, must not be written again by this installation.

    doing: what would be lost by, as in "repairing".
    """
    if is_newer(version):
        raise NewerFormatError(
            f"{path} has format version {version}, newer than {FORMAT_VERSION}: {doing} would lose what this "
            f"installation does not know. Nothing was touched. {_UPGRADE}"
        )


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")
    return int(major), int(minor)


class _Format(BaseModel):
    format: str
    format_version: Version


def _parse(path: Path, data: bytes, model: type[Model]) -> Model:
    if seal_state(data) == "broken":
        raise AlignDetError(
            f"{path} cannot be read: its digest does not fit, so it was changed or damaged after it was written. "
            f"See `aligndet verify`."
        )
    return _validate(path, data, model)


def _validate(path: Path, data: bytes, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        kind = model.__name__.strip("_")
        raise AlignDetError(f"{path} cannot be read as {kind}: {_first_fault(error)}") from error


def _first_fault(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    place = ".".join(str(part) for part in faults[0]["loc"])
    more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
    return f"{place}: {faults[0]['msg']}{more}" if place else f"{faults[0]['msg']}{more}"


def _check_format(path: Path, data: bytes) -> str:
    # Before the seal: a newer major version may seal its files in another way.
    found = _validate(path, data, _Format)
    if found.format != FORMAT_NAME:
        raise AlignDetError(f"{path} is not the manifest of a proposal dataset (format {found.format!r}).")
    if _numbers(found.format_version)[0] > _numbers(FORMAT_VERSION)[0]:
        raise NewerFormatError(
            f"{path} has format version {found.format_version}, newer than the {FORMAT_VERSION} this installation "
            f"reads. {_UPGRADE}"
        )
    return found.format_version


def _how_to_one(root: Path) -> str:
    if is_web(root):
        return "Is the address that of its folder?"
    if is_remote(root) or not root.exists():
        return f"Make one: aligndet mine IMAGES {root}"
    if is_there(root.parent / layout.MANIFEST):
        return f"Name the dataset: {root.parent}"
    if root.is_dir() and not any(root.iterdir()):
        return f"Make one: aligndet mine IMAGES {root}"
    return f"Make one, in a folder of its own: aligndet mine {root} OUT"


def _why_no_manifest(root: Path) -> str:
    if not is_there(as_path(root) / layout.PLAN):
        return (
            f"{root} is not a proposal dataset: it holds no {layout.MANIFEST}. {_how_to_one(as_path(root))}"
        )
    return (
        f"{root} is in progress, not a dataset: {_done_in(root)}{layout.MANIFEST} is not written yet. "
        f"Run the same `aligndet mine IMAGES {root}` again to resume. If it was a dataset before, "
        f"`aligndet verify {root} --repair` writes {layout.MANIFEST} again."
    )


def _done_in(root: Path) -> str:
    try:
        done = sum(name.endswith(".json") for name in sizes_in(as_path(root) / layout.SHARDS))
    except NotListedError:
        return ""
    return f"{done} shards are done and "
