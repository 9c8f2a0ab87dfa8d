"""The recipe: everything, besides the images, that decides which boxes a dataset holds."""

import hashlib
import json
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from proposals.filter_spec import FilterSpec
from proposals.images import DEFAULT_MAX_PIXELS, MAX_PIXELS_CEILING
from proposals.ranking import RankName
from proposals.selective_search import Mode

FilterName = Annotated[str, AfterValidator(lambda name: FilterSpec.parse(name).name)]


class Recipe(BaseModel):
    """How proposals are made. The engine is not part of it: engines give the same boxes.

    mode: OpenCV's selective-search preset. max_side: longer side in px at which the search runs.
    filter: see proposals.filter_spec. rank: see proposals.ranking. seed: seeds the order of boxes of each image.
    max_pixels: larger images are rejected. Raises pydantic.ValidationError, or AlignDetError for a filter name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = "fast"
    max_side: int = Field(default=512, ge=16, le=8192)
    filter: FilterName = "ratio3size0008@0.5"
    rank: RankName = "agreement"
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    max_pixels: int = Field(default=DEFAULT_MAX_PIXELS, ge=1, le=MAX_PIXELS_CEILING)

    def fingerprint(self) -> str:
        """sha256, in hex, of the recipe's canonical JSON."""
        canonical = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def diff(self, other: "Recipe") -> dict[str, tuple[object, object]]:
        """The fields that differ: ``{field: (here, in other)}``."""
        mine, theirs = self.model_dump(), other.model_dump()
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}

    def image_seed(self, image_sha256: str) -> int:
        """The seed of one image's search, in [0, 2**32), from the recipe's seed and the sha256 of its bytes."""
        digest = hashlib.sha256(f"{self.seed}:{image_sha256}".encode()).digest()
        return int.from_bytes(digest[:4], "big")
