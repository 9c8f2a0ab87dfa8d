"""Joining datasets of one recipe. Tars and Parquet tables are linked, not copied, where the filesystem allows."""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from proposals.dataset import layout
from proposals.dataset.assemble import PLAN_SCHEMA, assemble, plan_bytes, read_plan
from proposals.dataset.checks.folder import file_faults
from proposals.dataset.doubles import equal_images
from proposals.dataset.files import fsync, write_atomically
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import (
    IMPORTED,
    CommitRecord,
    FileEntry,
    Manifest,
    ShardEntry,
    SourceInfo,
    committed_record,
    read_manifest,
    refuse_newer,
    require_listable,
    write_model,
)
from proposals.errors import AlignDetError
from proposals.paths import local_only

# What decides boxes. pyarrow decides only how they are packed; of two CPU levels both are kept.
_DECIDING = ("numpy", "opencv", "pillow", "decoding")
_SHOWN = 5


@dataclass(frozen=True)
class _Part:
    root: Path
    manifest: Manifest
    plan: pa.Table


def merge_datasets(
    roots: Sequence[Path], out: Path, warn: Callable[[str], None] = lambda _: None
) -> Manifest:
    """Make the dataset ``out`` of all images of the finished datasets ``roots``, in that order.

    Image and box files are hard links to the inputs' (copies on another filesystem); plan, commit records and
    dataset.json are written new, shards renumbered. A stopped merge leaves a folder without dataset.json. warn: is told
    how many images two datasets have under different names, by their content. Raises AlignDetError when recipes or
    deciding library versions differ (field by field), a name is in two datasets, an input is damaged or holds links, or
    ``out`` is not empty.
    """
    roots, out = [local_only(root, "merge") for root in roots], local_only(out, "merge")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AlignDetError(
            f"{out} is not empty. Choose a new folder; if it is the beginning of a merge that was stopped, delete it."
        )
    parts = []
    for root in roots:
        manifest = read_manifest(root)
        refuse_newer(root / layout.MANIFEST, manifest.format_version, "merging")
        for fault in file_faults(root, manifest.plan, content=True):
            raise AlignDetError(
                f"{layout.PLAN} of {root} {fault}. If images were being added, run that job to its end; else run: "
                f"aligndet verify {root} --repair"
            )
        parts.append(_Part(root, manifest, read_plan(root / layout.PLAN)))
    identity = _identity(parts)
    shards = sum(len(part.manifest.shards) for part in parts)
    require_listable(shards, identity.source.images, identity.images_per_shard)
    plan = _plan(parts)
    if (doubles := equal_images([(part.root, part.manifest) for part in parts])) is not None:
        warn(
            f"{doubles.count:,} images have the content of an image in an earlier dataset under another name, "
            f"{doubles.example[1]!r} that of {doubles.example[0]!r} for one: {out} has them twice"
        )
    (out / layout.SHARDS).mkdir(parents=True, exist_ok=True)
    records: list[CommitRecord] = []
    for part in parts:
        for shard in part.manifest.shards:
            records.append(_adopt(part, shard, out, layout.shard_name(len(records))))
    fsync(out / layout.SHARDS)
    write_atomically(out / layout.PLAN, plan_bytes(plan, identity))
    return assemble(out, identity, records)


def _identity(parts: Sequence[_Part]) -> JobIdentity:
    first = parts[0].manifest
    for part in parts[1:]:
        recipes = first.recipe.diff(part.manifest.recipe)
        lines = [f"recipe.{name}: {there}, here {here}" for name, (there, here) in recipes.items()]
        versions = [(name, first.versions.get(name), part.manifest.versions.get(name)) for name in _DECIDING]
        lines += [f"versions.{name}: {there}, here {here}" for name, there, here in versions if there != here]
        if lines:
            listed = "".join(f"\n  {line}" for line in lines)
            raise AlignDetError(
                f"{part.root} was not made as {parts[0].root} was:{listed}\n"
                "Boxes of different makes do not belong into one dataset: mine one of them again."
            )
    _require_one_make(parts)
    _require_same_place(parts)
    manifests = [part.manifest for part in parts]
    source = first.source if len(parts) == 1 else _joined_source(manifests)
    shared = set.intersection(*(set(manifest.versions.items()) for manifest in manifests))
    return JobIdentity(
        recipe=first.recipe,
        source=source,
        images_per_shard=max(manifest.images_per_shard for manifest in manifests),
        versions={name: version for name, version in first.versions.items() if (name, version) in shared},
        images=first.images,
    )


def _require_one_make(parts: Sequence[_Part]) -> None:
    imported = {part.manifest.source.imported: part.root for part in parts}
    if len(imported) > 1:
        raise AlignDetError(
            f"the boxes of {imported[True]} were imported, those of {imported[False]} mined, and one dataset would "
            "say of all that its recipe was run. Keep them apart."
        )


def _require_same_place(parts: Sequence[_Part]) -> None:
    first = parts[0]
    for part in parts[1:]:
        if part.manifest.images != first.manifest.images:
            places = [
                each.manifest.images.root if each.manifest.images else "its tars" for each in (first, part)
            ]
            raise AlignDetError(
                f"the images of {first.root} are in {places[0]}, those of {part.root} in {places[1]}: one dataset has "
                "its images in one place. Mine one of them again."
            )


def _joined_source(manifests: Sequence[Manifest]) -> SourceInfo:
    sources = [manifest.source for manifest in manifests]
    digest = hashlib.sha256("\n".join(source.fingerprint for source in sources).encode())
    return SourceInfo(
        kind=f"{IMPORTED}merged" if sources[0].imported else "merged",
        images=sum(source.images for source in sources),
        fingerprint=digest.hexdigest(),
    )


def _plan(parts: Sequence[_Part]) -> pa.Table:
    tables, shards = [], 0
    for part in parts:
        moved = pc.add(part.plan.column("shard"), pa.scalar(shards, pa.int32()))
        table = part.plan.set_column(0, "shard", moved).select(PLAN_SCHEMA.names).cast(PLAN_SCHEMA)
        tables.append(table.replace_schema_metadata(None))
        shards += len(part.manifest.shards)
    plan = pa.concat_tables(tables).combine_chunks()
    _refuse_doubles(plan)
    return plan


def _refuse_doubles(plan: pa.Table) -> None:
    counts = pc.value_counts(plan.column("key"))
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(twice):
        uris = plan.filter(pc.is_in(plan.column("key"), value_set=twice)).column("uri").to_pylist()
        shown = ", ".join(sorted(set(uris))[:_SHOWN])
        raise AlignDetError(
            f"{len(twice)} images have the same path, and so the same key, in two of the datasets: {shown}. "
            "Keys must be unique: mine them from a folder above both, so that their paths differ. Of datasets that are "
            "not yours, unpack the tars of each into a folder of its own name, as x/a and y/b, and merge what "
            "`aligndet convert A A2 --to dataset --images x`, and the same of B and y, make of them."
        )


def _adopt(part: _Part, shard: ShardEntry, out: Path, name: str) -> CommitRecord:
    """Link one shard's files under its new name and write its commit record."""
    record = committed_record(part.root, shard)
    _refuse_links_and_damage(part.root, shard)
    renamed: dict[str, FileEntry] = {}
    for kind, entry in (("tar", shard.tar), ("parquet", shard.parquet)):
        if entry is not None:
            path = f"{layout.SHARDS}/{name}.{kind}"
            _link(part.root / entry.path, out / path)
            renamed[kind] = entry.model_copy(update={"path": path})
    moved = record.model_copy(update={"shard": shard.model_copy(update={"name": name, **renamed})})
    write_model(layout.record_path(out, name), moved)
    return moved


def _refuse_links_and_damage(root: Path, shard: ShardEntry) -> None:
    """What a link leads to is a file of somebody else: it would become a part of the merged dataset."""
    if (root / layout.SHARDS).is_symlink():
        raise AlignDetError(
            f"{root / layout.SHARDS} is a symbolic link, not a folder. Put the folder itself in its place"
        )
    for entry in shard.files:
        for fault in file_faults(root, entry, content=False):
            raise AlignDetError(
                f"{root / entry.path} {fault}. See: aligndet verify {root} (and of a download with links into a cache, "
                "merge a copy that has the files: cp -rL)"
            )


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another filesystem, or one without hard links
        shutil.copyfile(source, target)
        fsync(target)
