"""What a dataset holds, in numbers (`collect`) and as one self-contained HTML page (`render`)."""

from proposals.report.numbers import Statistics, collect
from proposals.report.page import render

__all__ = ["Statistics", "collect", "render"]
