"""Errors a user can act on, and what the command's exit codes mean.

The command line prints them as one sentence, without a traceback.
"""

# What a script may rely on; docs/exit-codes.md is this table.
EXIT_CODES = {
    0: "Done. `verify`: intact. `doctor`: healthy.",
    1: "Refused, or failed on bad input, or on a disk or mount that is full, fails or is gone: "
    "the message names the thing, the cause and the next step. `verify`: damaged.",
    2: "The command line is wrong: no such verb or option, or a value of the wrong kind.",
    3: "An optional half or library is not installed; the message has the `pip install` line.",
    4: "Something that is installed is broken. `aligndet doctor` says what, and how to repair it.",
    70: "A fault of aligndet itself: the only case that prints a traceback. Please report it.",
    130: "Stopped by Ctrl-C; `pretrain` and `pretrain-backbone` also by SIGTERM or SIGHUP, after a checkpoint. "
    "The same command goes on from there, if the verb resumes at all.",
    143: "Ended by SIGTERM. `mine`, `regions` and `finetune` go on from there with the same command.",
}


class AlignDetError(Exception):
    """A user's mistake or a broken input: the message names the thing, the cause and the next step."""

    exit_code = 1


class MissingExtraError(AlignDetError):
    """A verb was called whose optional dependencies are not installed."""

    exit_code = 3


class BadUrlError(AlignDetError):
    """A URL that no library understands."""


class BrokenInstallationError(AlignDetError):
    """Something is installed and cannot be imported or does not work."""

    exit_code = 4


class UnansweredError(AlignDetError):
    """A file could not be read now, or from here, which says nothing of what is in it."""


class DeniedError(UnansweredError):
    """A server answers, and does not give the file: it is not there, or not for us."""


class NewerFormatError(AlignDetError):
    """A dataset of a format that came after this installation: not damaged, and not to be touched."""
