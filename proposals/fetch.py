"""Bytes by name, from disk or from a URL, with two kinds of failure: of this one image, or perhaps of the moment."""

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from proposals.errors import AlignDetError, BadUrlError, MissingExtraError
from proposals.images import ImageRejected
from proposals.paths import filesystem, is_web, scheme_of

Read = TypeVar("Read")
MAX_IMAGE_BYTES = 512 * 2**20
_PIECE = 2**20
_PAUSES = (0.5, 2.0)
_LONGEST_PAUSE = 20.0
_GONE = (404, 410)
_DENIED = (401, 403, 407, 451)
PART, _NO_SUCH_RANGE = 206, 416
# Of what is compressed on the way a part would be a part of nothing, and its size another.
AS_IT_IS = {"Accept-Encoding": "identity"}
_NO_UTF8 = re.compile(r"\\x([89a-f][0-9a-f])")
# Of the answers that an S3 client turns into "missing" and "denied", those about this one object: others are about the
# bucket, the credentials or the clock, and so about every image.
_OF_THE_OBJECT = ("AccessDenied", "403", "InvalidObjectState", "NoSuchKey", "NoSuchVersion", "404")
# What S3's client raises for a bucket or key that cannot be; not imported, as it may not be installed.
_NOT_EVEN_ASKED = ("ParamValidationError",)


class SourceUnavailableError(OSError):
    """Throttled, cut off, timed out: the image may be there, so trying again later can help.

    pause: the seconds that a server asked to be left alone for, 0 where it did not ask. node: of Ray, that it happened
    on.
    """

    pause = 0.0
    node = ""


def fetch(location: str, start: int = 0, size: int | None = None) -> bytes:
    """``size`` bytes from ``start`` (all: None, with start 0) of a local path or an allowed URL.

    Raises ImageRejected(stage "read") when it is missing, denied, too short, or larger than any image is;
    SourceUnavailableError when a remote did not answer, after three tries, between which a web server's Retry-After is
    waited for, up to twenty seconds; MissingExtraError when the library for its scheme is not installed.
    """
    if size is not None and size > MAX_IMAGE_BYTES:
        raise too_large()
    read = _read_local if scheme_of(location) is None else _read_remote
    data = read(location, start, size)
    if size is not None and len(data) != size:
        raise ImageRejected("read", "container_cut", "the file that holds it ends inside of it")
    return data


def _read_local(location: str, start: int, size: int | None) -> bytes:
    location = as_spelled(location)
    try:
        # Opening a pipe or a device could wait for ever.
        if not stat.S_ISREG(Path(location).stat().st_mode) and not Path(location).is_dir():
            raise ImageRejected("read", "not_a_file", "a pipe, socket or device with the name of an image")
        with Path(location).open("rb") as stream:
            # Asked first: a file that takes no disk can still be larger than memory.
            if size is None and os.fstat(stream.fileno()).st_size > MAX_IMAGE_BYTES:
                raise too_large()
            stream.seek(start)
            return stream.read() if size is None else stream.read(size)
    except IsADirectoryError as error:
        raise ImageRejected("read", "is_a_directory", "a folder with the name of an image") from error
    except PermissionError as error:
        raise ImageRejected("read", "permission_denied", "the file may not be read") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageRejected("read", "missing", "the file is gone, or a link to nowhere") from error
    except ValueError as error:
        raise ImageRejected("read", "bad_name", "no file can have its name") from error
    except OSError as error:  # a disk or a network mount that fails
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise ImageRejected("read", "bad_name", "no file can have its name") from error
        raise SourceUnavailableError(f"{location} cannot be read: {error.strerror}") from error


def as_spelled(location: str) -> str:
    r"""The path as the system spells it: uris have the bytes of a name that are no UTF-8 as ``\xNN``."""
    if "\\x" not in location or "\0" in location or os.path.lexists(location):
        return location
    return with_raw_bytes(location)


def with_raw_bytes(name: str) -> str:
    r"""``name`` with the bytes that it has as ``\xNN``, as Python holds what is no UTF-8."""
    return _NO_UTF8.sub(lambda found: chr(0xDC00 + int(found[1], 16)), name)


def _read_remote(url: str, start: int, size: int | None) -> bytes:
    try:
        filesystem_, path = filesystem(url)
    except MissingExtraError:
        raise  # of this machine, and so the same for every image
    except BadUrlError as error:
        raise _bad_url() from error
    except AlignDetError as error:
        raise ImageRejected("read", "not_allowed", str(error)) from error
    if size == 0:
        return b""  # a range that ends before it begins is the whole object to S3
    return asked_again(lambda: _read_once(filesystem_, path, url, start, size))


def asked_again(read: Callable[[], Read]) -> Read:
    """What ``read`` returns, tried three times while it raises SourceUnavailableError, with its pause between."""
    for pause in (*_PAUSES, None):
        try:
            return read()
        except SourceUnavailableError as error:
            if pause is None:
                raise
            time.sleep(max(pause, error.pause))
    raise AssertionError("unreachable: the last try returns or raises")


def _read_once(filesystem_: Any, path: str, url: str, start: int, size: int | None) -> bytes:
    try:
        if size is None:
            return _read_web(filesystem_, path) if is_web(url) else _read_whole(filesystem_, path)
        return read_part(filesystem_, path, url, start, size)
    except AlignDetError:
        raise
    except (FileNotFoundError, IsADirectoryError) as error:
        require_of_the_object(error, url)
        raise ImageRejected("read", "missing", "there is nothing at its URL") from error
    except PermissionError as error:
        require_of_the_object(error, url)
        raise ImageRejected("read", "permission_denied", "its URL may not be read") from error
    except Exception as error:  # every backend has exceptions of its own
        raise verdict(error, url) from error


def require_of_the_object(error: OSError, url: str) -> None:
    """Raise SourceUnavailableError where `is_of_the_object` says no."""
    if not is_of_the_object(error):
        raise SourceUnavailableError(f"{url}: {_s3_code(error)}: {error}") from error


def is_of_the_object(error: OSError) -> bool:
    """False where an S3 client blames an object for its bucket, the credentials or the clock."""
    return _s3_code(error) in (None, *_OF_THE_OBJECT)


def _s3_code(error: OSError) -> str | None:
    answer = getattr(error.__cause__, "response", None)
    return answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None


def _read_whole(filesystem_: Any, path: str) -> bytes:
    # By a range, as an object may be larger than memory, and asking for its size would be a request more.
    try:
        data = bytes(filesystem_.cat_file(path, start=0, end=MAX_IMAGE_BYTES + 1))
    except Exception as error:
        if getattr(error, "status", None) != _NO_SUCH_RANGE and getattr(error, "errno", None) != errno.EINVAL:
            raise
        if filesystem_.info(path)["size"]:
            raise
        return b""  # an empty object has no first byte to begin at
    if len(data) > MAX_IMAGE_BYTES:
        raise too_large()
    return data


def read_part(filesystem_: Any, path: str, url: str, start: int, size: int) -> bytes:
    """Up to ``size`` bytes from ``start`` of the remote file ``url``, which is ``path`` in its filesystem.

    No more are held of what a web server sends, which may be all of it. Raises what fsspec does.
    """
    if not is_web(url):
        return bytes(filesystem_.cat_file(path, start=start, end=start + size))
    data = bytearray()
    with web_part(filesystem_, path, start, size) as stream:
        before = 0 if stream.r.status == PART else start
        while (left := before + size - len(data)) > 0 and (piece := stream.read(min(_PIECE, left))):
            data += piece
            skipped = min(before, len(data))
            before -= skipped
            del data[:skipped]
    return bytes(data)


def web_stream(filesystem_: Any, path: str, **options: Any) -> Any:
    """The body of a web server's answer, to be read once; ``r.status`` is its status. Raises what fsspec does."""
    # A size, or fsspec would ask for it and hide the answer.
    return filesystem_.open(path, "rb", block_size=0, size=1, **options)


def web_part(filesystem_: Any, path: str, start: int, size: int) -> Any:
    """`web_stream` of ``size`` bytes from ``start``; of all of it where the server knows no parts: see ``r.status``."""
    wanted = {**AS_IT_IS, "Range": f"bytes={start}-{start + size - 1}"}
    return web_stream(filesystem_, path, headers=wanted)


def _read_web(filesystem_: Any, path: str) -> bytes:
    # In pieces: a stranger's server may send without end.
    data = bytearray()
    with web_stream(filesystem_, path) as stream:
        while piece := stream.read(_PIECE):
            data += piece
            if len(data) > MAX_IMAGE_BYTES:
                raise too_large()
    return bytes(data)


def too_large() -> ImageRejected:
    """What an image of more than MAX_IMAGE_BYTES is rejected with."""
    return ImageRejected("read", "too_large", f"more than {MAX_IMAGE_BYTES} bytes")


def _bad_url() -> ImageRejected:
    return ImageRejected("read", "bad_url", "its URL cannot be understood")


def verdict(error: Exception, url: str) -> Exception:
    """What reading ``url`` is to raise for ``error`` of its backend: ImageRejected or SourceUnavailableError."""
    status = getattr(error, "status", None)
    if status in _GONE:
        return ImageRejected("read", "missing", "there is nothing at its URL")
    if status in _DENIED:
        return ImageRejected("read", "permission_denied", "its URL may not be read")
    if (isinstance(error, ValueError) and status is None) or type(error).__name__ in _NOT_EVEN_ASKED:
        return _bad_url()
    if (
        isinstance(status, int)
        and 400 <= status < 500
        and status not in (408, 425, 429)
        and not _garbled(error)
    ):
        return ImageRejected("read", "refused", f"its server answers {status}")
    unavailable = SourceUnavailableError(f"{url}: {type(error).__name__}: {error}")
    unavailable.pause = _asked_pause(getattr(error, "headers", None))
    return unavailable


def _garbled(error: Exception) -> bool:
    """Whether the answer could not be understood, which aiohttp says as if the server had answered 400.

    The rest of an answer before, on the same connection, for one: the next time it may be sound.
    """
    return any(cls.__name__ == "HttpProcessingError" for cls in type(error.__cause__).__mro__)


def _asked_pause(headers: Mapping[str, str] | None) -> float:
    """Of Retry-After (RFC 9110, 10.2.3): seconds, or a date."""
    asked = (headers or {}).get("Retry-After", "")
    try:
        seconds = int(asked) if asked.isdecimal() else parsedate_to_datetime(asked).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_PAUSE)
