"""How long one image may take, and how much memory."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line, which has to be light, imports this
    from proposals.recipe import Recipe
    from proposals.selective_search.types import Engine

_SECONDS_PER_MEGAPIXEL = 120.0
_ORACLE_FACTOR = 15
GIBIBYTES = 4.0
MEMORY = int(GIBIBYTES * 2**30)
READ_SECONDS = 120.0


@dataclass(frozen=True)
class Limits:
    """Of the process that searches one image. seconds: by the clock. memory: bytes, besides the process itself.

    read_seconds: for reading one image from its source, by the clock.
    """

    seconds: float = _SECONDS_PER_MEGAPIXEL
    memory: int = MEMORY
    read_seconds: float = READ_SECONDS


def default_seconds(recipe: "Recipe", engine: "Engine") -> float:
    """Hundreds of times what the slowest photograph needs: 120 s, more above a megapixel and for OpenCV's engine."""
    seconds = _SECONDS_PER_MEGAPIXEL * max(1.0, recipe.max_side**2 / 1e6)
    return seconds * _ORACLE_FACTOR if engine == "opencv" else seconds


def limits_of(recipe: "Recipe", engine: "Engine", seconds: float | None, gibibytes: float) -> Limits:
    """Of a user who asks for so many ``seconds`` (None: `default_seconds`) and so much memory an image."""
    limit = seconds or default_seconds(recipe, engine)
    return Limits(limit, int(gibibytes * 2**30), max(limit, READ_SECONDS))
