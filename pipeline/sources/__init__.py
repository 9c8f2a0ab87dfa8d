"""Where images come from: one file per kind of source, and what they share in `base`."""

from pipeline.sources.base import Source, SourceEntry, describe
from pipeline.sources.folder import FolderSource
from pipeline.sources.opening import open_source
from proposals.fetch import SourceUnavailableError

__all__ = [
    "FolderSource",
    "Source",
    "SourceEntry",
    "SourceUnavailableError",
    "describe",
    "open_source",
]
