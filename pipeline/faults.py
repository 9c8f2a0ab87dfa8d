"""Which exceptions of a shard task are the application's, and which are the machine's, worth another attempt."""

import errno

from pipeline.executor import Fault
from pipeline.shard_task import OtherVersionsError
from pipeline.sources import SourceUnavailableError

# The same on every machine that sees the same folder.
_LASTING = (IsADirectoryError, NotADirectoryError, FileExistsError, PermissionError)
_LASTING_NUMBERS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.EFBIG, errno.ELOOP}
# Of libraries that are not imported here: what their clients raise when a server throttles or a line is cut.
_NETWORK_LIBRARIES = (
    "aiohttp",
    "aiobotocore",
    "botocore",
    "urllib3",
    "requests",
    "httpx",
    "httpcore",
    "google",
)


def fault_of(error: BaseException, remote: bool = False) -> Fault:
    """The kind of ``error``, raised by a shard task. remote: whether the output is a URL."""
    if isinstance(error, SourceUnavailableError):
        return Fault.source
    if isinstance(error, OtherVersionsError):
        return Fault.versions
    if isinstance(error, ChildProcessError | MemoryError):
        return Fault.worker
    if isinstance(error, OSError):
        # The system's own errors are then of that machine's scratch disk, which others do not share.
        passing = remote and error.errno is not None
        lasting = isinstance(error, _LASTING) or error.errno in _LASTING_NUMBERS
        return Fault.failed if lasting and not passing else Fault.busy
    library = type(error).__module__.split(".")[0]
    return Fault.busy if library in _NETWORK_LIBRARIES else Fault.failed
