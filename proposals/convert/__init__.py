"""Proposals in the forms that other tools use: read as a stream of `ImageBoxes`, written from one."""

from proposals.convert.stream import DatasetSource, ImageBoxes, Source

__all__ = ["DatasetSource", "ImageBoxes", "Source"]
