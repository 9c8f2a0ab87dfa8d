"""Names of files and keys inside a dataset folder."""

import hashlib
import re
from pathlib import Path, PurePosixPath

from proposals.paths import is_web

MANIFEST = "dataset.json"
PLAN = "plan.parquet"
REJECTED = "rejected.parquet"
SHARDS = "shards"
CONSOLIDATED = "proposals.zarr"
APPEND = "append.parquet"
REGIONS = "regions.zarr"
CLUSTERS = "clusters.zarr"
CLUSTERS_RECORD = "clusters.json"
TEMPORARY_MARK = ".tmp-"
# Readers of a dataset ignore it, and `mine` removes what a killed run left.
HEARTBEAT = f"progress{TEMPORARY_MARK}job.json"
# Of what `temporary_name` calls so: files where files are, and folders whose content is written before their rename.
_TEMPORARY = re.compile(
    rf"(({SHARDS}|{REGIONS})/)?[^/]+\.tmp-[0-9a-f]{{32}}"
    rf"|({CONSOLIDATED}|{CLUSTERS}|{REGIONS}/[0-9]+|repair)\.tmp-[0-9a-f]{{32}}/.+"
)

# With the hash and the longest suffix a member name stays below the 100 characters of a plain tar header.
_STEM_LENGTH = 48
_HASH_LENGTH = 16
KEY_LENGTH = _STEM_LENGTH + 1 + _HASH_LENGTH
_KEY = re.compile(rf"[A-Za-z0-9_-]{{1,{_STEM_LENGTH}}}-[0-9a-f]{{{_HASH_LENGTH}}}")
# Of the formats that are decoded.
_EXTENSIONS = frozenset({"jpg", "jpe", "jfif", "png", "apng", "webp", "bmp", "dib", "tif", "gif"})


def shard_name(number: int) -> str:
    """The name all files of shard ``number`` share: five digits or more."""
    return f"{number:05d}"


def tar_path(root: Path, name: str) -> Path:
    """Where the images of shard ``name`` are."""
    return root / SHARDS / f"{name}.tar"


def parquet_path(root: Path, name: str) -> Path:
    """Where the boxes of shard ``name`` are."""
    return root / SHARDS / f"{name}.parquet"


def record_path(root: Path, name: str) -> Path:
    """Where the commit record of shard ``name`` is: the only proof that the shard is complete."""
    return root / SHARDS / f"{name}.json"


def is_consolidated_path(path: str) -> bool:
    """Whether ``path``, relative to the dataset folder, can only name a file inside the Zarr group."""
    parts = path.split("/")
    return (
        len(parts) > 1 and parts[0] == CONSOLIDATED and not {"", ".", ".."} & set(parts) and "\\" not in path
    )


def is_temporary(path: str) -> bool:
    """Whether ``path``, relative to the dataset folder, is of a run that was stopped or still runs, by its name."""
    return path == HEARTBEAT or _TEMPORARY.fullmatch(path) is not None


def key_of(uri: str) -> str:
    """The sample key of an image: its stem made of [A-Za-z0-9_-], then a hash of the whole ``uri``.

    It holds neither dot nor slash (WebDataset splits names there) and differs for every uri.
    """
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", PurePosixPath(uri).stem)[:_STEM_LENGTH].strip("_-") or "image"
    return f"{stem}-{hashlib.sha256(uri.encode()).hexdigest()[:_HASH_LENGTH]}"


def is_key(stem: str) -> bool:
    """Whether ``stem`` may be a sample key: a file that is called so is likely a dataset's."""
    return _KEY.fullmatch(stem) is not None


def is_image_member(name: str) -> bool:
    """Whether ``name`` ends as the images in a dataset's tars do."""
    return image_extension(name) == PurePosixPath(name).suffix[1:] or name.endswith(".bin")


def image_extension(uri: str) -> str:
    """The image member's extension without the dot: the uri's in lower case when it is an image's, else ``bin``.

    One spelling per format (jpg, tif). A web URL without one may have it before its ``?`` or ``#``. Never what a
    stranger chooses: readers of tars go by it, and webdataset unpickles what is called ``pyd``.
    """
    names = [uri, re.split("[?#]", uri, maxsplit=1)[0]] if is_web(uri) else [uri]
    suffixes = [PurePosixPath(name).suffix.lower().lstrip(".") for name in names]
    spelled = [{"jpeg": "jpg", "tiff": "tif"}.get(suffix, suffix) for suffix in suffixes]
    return next((suffix for suffix in spelled if suffix in _EXTENSIONS), "bin")
