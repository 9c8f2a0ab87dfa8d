"""Whether images that stayed where they were are still the ones that were mined."""

import hashlib
from collections.abc import Iterator

import pyarrow as pa

from proposals.errors import UnansweredError
from proposals.fetch import SourceUnavailableError
from proposals.image_roots import ImageRoot
from proposals.images import ImageRejected
from proposals.paths import scheme_of


def reference_faults(images: ImageRoot, table: pa.Table) -> Iterator[str]:
    """The rows of a shard's table whose image cannot be read, or has another sha256; reads all of their bytes."""
    for row in table.select(("uri", "sha256")).to_pylist():
        try:
            data = images.read(row["uri"])
        except (ImageRejected, OSError) as error:
            remote = scheme_of(images.root) or scheme_of(row["uri"])
            if remote and isinstance(error, SourceUnavailableError):
                raise UnansweredError(
                    f"image {row['uri']!r} cannot be reached below {images.root}: {error}. Try again later: this says "
                    "nothing of the data"
                ) from error
            yield f"image {row['uri']!r} cannot be read below {images.root}: {error}"
            continue
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            yield f"image {row['uri']!r} has changed since it was mined: it has another sha256 than the table says"
