"""Where a source's images are, and the one function that reads an image by its uri.

What a uri means depends on the kind of source. It alone finds the image, below the root:

    folder              path/below/root.jpg
    list, coco          path/below/root.jpg, or a URL, or (local lists only) an absolute path
    webdataset          path/of.tar/<first byte>+<bytes>/name/of/member.jpg
    parquet, arrow      path/of.parquet/<row>[/name.jpg]
"""

import hashlib
import re
from pathlib import PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict

from proposals import image_rows
from proposals.errors import AlignDetError
from proposals.fetch import MAX_IMAGE_BYTES, SourceUnavailableError, fetch, too_large
from proposals.images import ImageRejected
from proposals.paths import SCHEMES, is_web, scheme_of

# What a table of the format has room for, and no file system and hardly a server takes more.
MAX_NAME_BYTES = 8000

Kind = Literal["folder", "list", "coco", "webdataset", "parquet", "arrow"]
KINDS: tuple[Kind, ...] = ("folder", "list", "coco", "webdataset", "parquet", "arrow")
# Of these a name may come again, and be a URL.
LISTS = ("list", "coco")
_MEMBER = re.compile(r"^(.+?\.tar)/(\d{1,15})\+(\d{1,12})/.", re.DOTALL | re.IGNORECASE)
_SHORTENED = re.compile(r"\.\.\. \(\d+ bytes, sha256 [0-9a-f]{16}\)$")
_ROW = re.compile(r"^(.+?\.(?:parquet|arrow))/(\d{1,12})(?:/|$)", re.DOTALL | re.IGNORECASE)


def shortened(name: str) -> str:
    """``name``, or, where it is longer than `MAX_NAME_BYTES`, what tells it from others and is no name of a file.

    A data: URL or a line of a file that is no list may have megabytes, which no table of a dataset has room for.
    """
    if len(name) <= MAX_NAME_BYTES // 4:
        return name
    data = name.encode("utf-8", "backslashreplace")
    if len(data) <= MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(data).hexdigest()[:16]
    return f"{data[:MAX_NAME_BYTES].decode('utf-8', 'ignore')}... ({len(data)} bytes, sha256 {digest})"


class ImageRoot(BaseModel):
    """kind: of the source. root: folder or URL below which relative uris are. column: of images in tables."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    root: str
    column: str | None = None

    def read(self, uri: str) -> bytes:
        """The bytes of one image.

        Raises ImageRejected(stage "read") when it is missing, unreadable or not allowed to be read, and
        SourceUnavailableError when its place did not answer.
        """
        if self.kind == "webdataset":
            return self._read_member(uri)
        if self.kind in ("parquet", "arrow"):
            return self._read_row(uri)
        try:
            return fetch(self.locate(uri))
        except SourceUnavailableError as error:
            if is_web(uri):  # one dead host among a list's thousands must not stop the others
                raise ImageRejected("read", "unreachable", "its server did not answer") from error
            raise

    def locate(self, uri: str) -> str:
        """The path or URL of the file that ``uri`` names; raises ImageRejected when it may not be read."""
        if len(uri) > MAX_NAME_BYTES // 4 and _SHORTENED.search(uri):
            raise ImageRejected("read", "bad_name", f"a name of more than {MAX_NAME_BYTES} bytes is not read")
        scheme, remote = scheme_of(uri), scheme_of(self.root) is not None
        if scheme is not None:
            if self.kind not in LISTS or scheme not in SCHEMES:
                raise ImageRejected("read", "not_allowed", f"a URL of scheme {scheme} is not read")
            if "::" in uri:
                raise ImageRejected(
                    "read", "not_allowed", "a URL with :: in it is not read, as it could chain others"
                )
            return uri
        path = PurePosixPath(uri)
        if path.is_absolute() and (remote or self.kind not in LISTS):
            raise ImageRejected("read", "not_allowed", "an absolute path is not read")
        if path.is_absolute():
            return uri
        if ".." in path.parts or not path.parts:
            raise ImageRejected("read", "not_allowed", "a path that leaves the folder is not read")
        return f"{self.root.rstrip('/') or '/'}/{uri}" if self.root else uri

    def file_of(self, uri: str) -> str:
        """The path or URL of the file that holds the image ``uri``: its tar or table, else as `locate`."""
        pattern = {"webdataset": _MEMBER, "parquet": _ROW, "arrow": _ROW}.get(self.kind)
        found = pattern.match(uri) if pattern is not None else None
        return self.locate(found[1] if found is not None else uri)

    def require_told_apart(self, path: str) -> None:
        """Raise AlignDetError when uris of what is in the tar or table ``path`` would name something in another."""
        pattern, example = (_MEMBER, f"{path}/0+0/x") if self.kind == "webdataset" else (_ROW, f"{path}/0")
        found = pattern.match(example)
        if found is not None and found[1] != path:
            raise AlignDetError(
                f"{path} lies in a folder named {PurePosixPath(found[1]).name}, as a file with images is named, and "
                "what is in it could not be told from what is in that. Rename that folder"
            )

    def _read_member(self, uri: str) -> bytes:
        found = _MEMBER.match(uri)
        if found is None:
            raise ImageRejected(
                "read", "broken_container", "the tar cannot be read to its end, or is compressed"
            )
        size = int(found[3])
        if not size:
            raise ImageRejected(
                "read", "empty_member", "no bytes, a sparse file, or a link to what is no image before it"
            )
        return fetch(self.locate(found[1]), int(found[2]), size)

    def _read_row(self, uri: str) -> bytes:
        found = _ROW.match(uri)
        if found is None or self.column is None:
            raise ImageRejected(
                "read", "broken_container", "the table cannot be read, or has no column of images"
            )
        data, path = image_rows.read_row(self.locate(found[1]), int(found[2]), self.column)
        if data is not None:
            if len(data) > MAX_IMAGE_BYTES:
                raise too_large()
            return data
        if path is None:
            raise ImageRejected("read", "missing", "its row holds neither bytes nor a path")
        return ImageRoot(kind="list", root=self.root).read(path)
