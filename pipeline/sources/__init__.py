"""Where images come from: one file per kind of source, and what they share in `base`."""

from pipeline.sources.base import Source, SourceEntry, SourceUnavailableError, describe
from pipeline.sources.folder import SUFFIXES, FolderSource

__all__ = ["SUFFIXES", "FolderSource", "Source", "SourceEntry", "SourceUnavailableError", "describe"]
