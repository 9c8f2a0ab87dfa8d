"""Errors a user can act on. The command line prints them as one sentence, without a traceback."""


class AlignDetError(Exception):
    """A user's mistake or a broken input: the message names the thing, the cause and the next step."""

    exit_code = 1


class MissingExtraError(AlignDetError):
    """A verb was called whose optional dependencies are not installed."""

    exit_code = 3


class NewerFormatError(AlignDetError):
    """A dataset of a format that came after this installation: not damaged, and not to be touched."""
