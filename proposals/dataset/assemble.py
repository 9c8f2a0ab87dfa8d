"""Closing a dataset: from its plan and the commit records of its shards to rejected.parquet and dataset.json."""

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from proposals.dataset import bounds, layout
from proposals.dataset.bounds import opened, read_parquet, read_row_groups
from proposals.dataset.files import write_atomically
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import (
    EMBEDDED_VERSION,
    FORMAT_VERSION,
    CommitRecord,
    FileEntry,
    Manifest,
    Totals,
    committing,
    write_model,
)
from proposals.errors import AlignDetError
from proposals.filter_spec import STATUSES

PLAN_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
    ]
)
REJECTED_SCHEMA = pa.schema(
    [
        pa.field(name, pa.string(), nullable=False)
        for name in ("key", "uri", "stage", "reason", "detail", "traceback_hash")
    ]
)
PLAN_GROUP = 131_072
# Of other writers; and what a key and a uri may take, on average, as `read_plan` has it.
_MAX_PLAN_GROUP = 2**20
_PLAN_ROW_BYTES = 2**15
_PLAN_GROUP_BYTES = 2**32
_IDENTITY_KEY = b"aligndet.job"
_PACKING: dict[str, Any] = {"compression": "zstd", "version": "2.6"}


def plan_bytes(plan: pa.Table, identity: JobIdentity) -> bytes:
    """The content of plan.parquet: the table (PLAN_SCHEMA), and the identity in the schema's metadata."""
    buffer = io.BytesIO()
    write_plan(buffer, [plan.select(PLAN_SCHEMA.names)], identity)
    return buffer.getvalue()


def write_plan(sink: Path | BinaryIO, parts: Iterable[pa.Table], identity: JobIdentity) -> None:
    """Write the rows of ``parts`` (PLAN_SCHEMA) as plan.parquet, 131 072 to a row group: the same rows, the same bytes.

    A part and a row group are in memory, not the plan.
    """
    metadata = {_IDENTITY_KEY: identity.model_dump_json(exclude_none=True).encode()}
    schema = PLAN_SCHEMA.with_metadata(metadata)
    with pq.ParquetWriter(sink, schema, **_PACKING) as writer:
        for group in regrouped(parts, PLAN_GROUP):
            writer.write_table(
                group.cast(PLAN_SCHEMA).replace_schema_metadata(metadata), row_group_size=PLAN_GROUP
            )


def regrouped(parts: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows, ``rows`` to a table, fewer in the last; one empty table when there are none."""
    held: list[pa.Table] = []
    count, given = 0, False
    for part in parts:
        held.append(part.replace_schema_metadata(None))
        count += part.num_rows
        while count >= rows:
            joined = pa.concat_tables(held).combine_chunks()
            yield joined.slice(0, rows)
            given, held, count = True, [joined.slice(rows)], count - rows
    if count or not given:
        yield pa.concat_tables(held).combine_chunks() if held else PLAN_SCHEMA.empty_table()


def plan_groups(path: Path) -> Iterator[pa.Table]:
    """The rows of a plan file (PLAN_SCHEMA), a row group at a time; raises AlignDetError when it is damaged."""
    for group in read_row_groups(path, _MAX_PLAN_GROUP, _PLAN_ROW_BYTES, _PLAN_GROUP_BYTES):
        yield checked_plan(path, group).select(PLAN_SCHEMA.names)


def read_identity(plan: Path) -> JobIdentity:
    """The identity in the metadata of a plan file; raises AlignDetError when it is damaged, or cannot be read now."""
    try:
        with opened(plan) as source:
            metadata = pq.read_schema(source).metadata or {}
        return JobIdentity.model_validate_json(metadata[_IDENTITY_KEY])
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        if (why := bounds.why_unreadable(error)) is not None:
            raise AlignDetError(f"{plan} cannot be read: {why}") from error
        raise AlignDetError(f"{plan} is damaged, the job cannot be resumed. Choose a new folder.") from error


def read_plan(path: Path) -> pa.Table:
    """The table of a plan file (PLAN_SCHEMA); raises AlignDetError when it is damaged."""
    return checked_plan(path, read_parquet(path, read_identity(path).source.images))


def checked_plan(path: Path, plan: pa.Table) -> pa.Table:
    """``plan`` again; raises AlignDetError when a column of PLAN_SCHEMA is missing or of another type."""
    return _checked(path, plan, list(PLAN_SCHEMA))


def read_rejected(
    root: Path, manifest: Manifest, columns: Sequence[str] = tuple(REJECTED_SCHEMA.names)
) -> pa.Table:
    """These columns of rejected.parquet (REJECTED_SCHEMA); raises AlignDetError when it is damaged."""
    path = root / layout.REJECTED
    table = read_parquet(path, manifest.totals.rejected, columns=columns)
    try:
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        raise AlignDetError(f"{path} is damaged: {error}.") from error
    return _checked(path, table, [REJECTED_SCHEMA.field(name) for name in columns])


def _checked(path: Path, table: pa.Table, wanted: Sequence[pa.Field]) -> pa.Table:
    for field in wanted:
        place = table.schema.get_field_index(field.name)
        if place < 0 or table.schema.field(place).type != field.type or table.column(place).null_count:
            raise AlignDetError(
                f"{path} is damaged: column {field.name} must be {field.type}, without nulls."
            )
    return table


def assemble(root: Path, identity: JobIdentity, records: Sequence[CommitRecord]) -> Manifest:
    """Write rejected.parquet, then dataset.json over the plan.parquet that is there: ``root`` becomes a dataset.

    records: of every shard, in order.
    """
    write_atomically(root / layout.REJECTED, rejected_bytes(records))
    manifest = Manifest(
        format_version=EMBEDDED_VERSION if identity.images is None else FORMAT_VERSION,
        recipe=identity.recipe,
        recipe_fingerprint=identity.recipe.fingerprint(),
        source=identity.source,
        images_per_shard=identity.images_per_shard,
        versions=identity.versions,
        totals=_totals(records),
        plan=FileEntry.of(root, root / layout.PLAN),
        rejected=FileEntry.of(root, root / layout.REJECTED),
        shards=tuple(record.shard for record in records),
        images=identity.images,
    )
    with committing(root):  # `consolidate` compares dataset.json with what it read, then writes
        write_model(root / layout.MANIFEST, manifest)
    return manifest


def rejected_bytes(records: Sequence[CommitRecord]) -> bytes:
    """The content of rejected.parquet."""
    return parquet_bytes(rejected_rows(records))


def rejected_rows(records: Sequence[CommitRecord]) -> pa.Table:
    """The rejected images of ``records``, in order (REJECTED_SCHEMA)."""
    rejected = [rejection for record in records for rejection in record.rejected]
    columns = [
        pa.array([getattr(row, name) for row in rejected], pa.string()) for name in REJECTED_SCHEMA.names
    ]
    return pa.Table.from_arrays(columns, schema=REJECTED_SCHEMA)


def parquet_bytes(table: pa.Table) -> bytes:
    """``table`` as a Parquet file, always the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **_PACKING)
    return buffer.getvalue()


def _totals(records: Sequence[CommitRecord]) -> Totals:
    shards = [record.shard for record in records]
    found: Counter[str] = Counter()
    for shard in shards:
        found.update(shard.statuses)
    files = [entry for shard in shards for entry in (shard.tar, shard.parquet) if entry is not None]
    return Totals(
        images=sum(shard.images for shard in shards),
        proposals=sum(shard.proposals for shard in shards),
        rejected=sum(len(record.rejected) for record in records),
        bytes=sum(entry.bytes for entry in files),
        statuses={status: found[status] for status in STATUSES if found[status]},
    )
