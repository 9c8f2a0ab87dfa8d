"""Whether images that stayed where they were are still the ones that were mined."""

import hashlib
from collections.abc import Iterator

import pyarrow as pa

from proposals.image_roots import ImageRoot
from proposals.images import ImageRejected


def reference_faults(images: ImageRoot, table: pa.Table) -> Iterator[str]:
    """The rows of a shard's table whose image cannot be read, or has another sha256; reads all of their bytes."""
    for row in table.select(("uri", "sha256")).to_pylist():
        try:
            data = images.read(row["uri"])
        except (ImageRejected, OSError) as error:
            yield f"image {row['uri']!r} cannot be read below {images.root}: {error}"
            continue
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            yield f"image {row['uri']!r} has changed since it was mined: it has another sha256 than the table says"
