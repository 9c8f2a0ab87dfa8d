"""Boxes from elsewhere, with their images, as a dataset: shards, commit records, manifest."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from proposals.boxes import clip, whole_image
from proposals.convert.image_files import ImageFiles
from proposals.convert.new_folder import new_dataset_folder
from proposals.convert.stream import ImageBoxes, Source
from proposals.dataset import layout
from proposals.dataset.assemble import PLAN_SCHEMA, assemble, plan_bytes
from proposals.dataset.files import write_atomically
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import (
    IMPORTED,
    CommitRecord,
    Manifest,
    Rejection,
    SourceInfo,
    library_versions,
    write_model,
)
from proposals.dataset.writer import MinedImage, ShardWriter
from proposals.errors import AlignDetError
from proposals.fetch import SourceUnavailableError, fetch
from proposals.filter_spec import STATUSES, Filtered
from proposals.images import ImageRejected, decode_bgr
from proposals.recipe import Recipe

Placed = Sequence[tuple[str, str | None]]


@dataclass(frozen=True)
class Import:
    """What is imported: images below ``images``; kind names the form; recipe is what the user says made the boxes."""

    source: Source
    kind: str
    images: Path
    recipe: Recipe
    images_per_shard: int = 64


def write_dataset(job: Import, root: Path, lost: Counter[str] | None = None) -> Manifest:
    """Make ``root`` a dataset of the images that ``job.source`` names, with its boxes.

    Boxes are clipped to their image, empty ones dropped; an image without any gets one box, the whole image, and the
    status of that fallback; others keep that of a dataset they come from. An image that is missing, broken or of
    another size or content than the source says is rejected and listed, not fatal. lost: counts what of the source the
    dataset has not, by words for it. The manifest's source kind says ``import-<kind>``: its recipe was declared, not
    run. Raises AlignDetError when ``root`` is not an empty folder, two entries mean one image, or not one can be read;
    nothing is left of it in ``root`` then.
    """
    names = [image.uri for image in job.source.images()]
    placed = ImageFiles(job.images).place(names)
    if not any(path for _, path in placed):
        raise AlignDetError(_why_nothing_found(job, names))
    plan = _plan(job, placed)
    identity = JobIdentity(
        recipe=job.recipe,
        source=SourceInfo.of(f"{IMPORTED}{job.kind}", _listed(plan)),
        images_per_shard=job.images_per_shard,
        versions=library_versions(),
    )
    with new_dataset_folder(root):
        write_atomically(root / layout.PLAN, plan_bytes(plan, identity))
        lost = Counter() if lost is None else lost
        records = list(_shards(job, root, placed, identity.fingerprint(), lost))
        if not any(record.shard.images for record in records):
            raise AlignDetError(_why_nothing_read(job, records))
        return assemble(root, identity, records)


def _why_nothing_found(job: Import, names: Sequence[str]) -> str:
    if not names:
        return f"the {job.kind} file names no image, so there is nothing to make a dataset of."
    if job.kind == "detectron2" and names[0].isdecimal():
        return (
            f"detectron2's form names images by id, such as {names[0]}, and no file below {job.images} is called so. "
            "Tell which id is which file: --ids ANNOTATIONS.json, a COCO json of these images"
        )
    return (
        f"none of the {len(names)} images, {names[0]!r} for one, is a file below {job.images}. "
        "Name the folder that holds them: --images FOLDER"
    )


def _why_nothing_read(job: Import, records: Sequence[CommitRecord]) -> str:
    rejected = [row for record in records for row in record.rejected]
    reasons = Counter(row.reason for row in rejected)
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    first = next((row for row in rejected if row.reason != "not_found"), rejected[0])
    return (
        f"none of the {len(rejected)} images could be taken from {job.images}: {listed}. For one, {first.uri}: "
        f"{first.detail}. Name the folder that holds the images of these boxes: --images FOLDER"
    )


def _plan(job: Import, placed: Placed) -> pa.Table:
    uris = [uri for uri, _ in placed]
    columns = {
        "shard": np.arange(len(uris), dtype=np.int32) // job.images_per_shard,
        "key": [layout.key_of(uri) for uri in uris],
        "uri": uris,
        "size": [(job.images / path).stat().st_size if path else -1 for _, path in placed],
    }
    return pa.table(columns, schema=PLAN_SCHEMA)


def _listed(plan: pa.Table) -> Iterator[tuple[str, int]]:
    return zip(plan.column("uri").to_pylist(), plan.column("size").to_pylist(), strict=True)


def _shards(
    job: Import, root: Path, placed: Placed, fingerprint: str, lost: Counter[str]
) -> Iterator[CommitRecord]:
    stream, number = zip(job.source.images(), placed, strict=True), 0
    while part := list(islice(stream, job.images_per_shard)):
        name, rejected = layout.shard_name(number), list[Rejection]()
        with ShardWriter(root, name) as writer:
            for image, (uri, path) in part:
                try:
                    loaded = _load(image, uri, None if path is None else job.images / path)
                    writer.add(loaded)
                    lost.update(_lost(image, loaded.proposals))
                except ImageRejected as error:
                    rejected.append(_rejection(uri, error))
            shard = writer.commit()
        record = CommitRecord(
            job=fingerprint, shard=shard, rejected=tuple(rejected), timing={}, versions=library_versions()
        )
        write_model(layout.record_path(root, name), record)
        yield record
        number += 1


def _load(image: ImageBoxes, uri: str, path: Path | None) -> MinedImage:
    if path is None:
        raise ImageRejected("read", "not_found", "no such file, or several of that name, or another entry's")
    try:
        data = fetch(str(path))
    except SourceUnavailableError as error:
        raise ImageRejected("read", "unreadable", str(error.__cause__ or error)) from error
    sha256 = hashlib.sha256(data).hexdigest()
    if image.sha256 not in (None, sha256):
        raise ImageRejected("read", "other_content", "the boxes are of another file, by its sha256")
    decoded = decode_bgr(data)
    size, told = (decoded.width, decoded.height), (image.width, image.height)
    if all(told) and size != told:
        raise ImageRejected(
            "read", "other_size", f"{size[0]} x {size[1]} px, the boxes are for {told[0]} x {told[1]}"
        )
    return MinedImage(
        key=layout.key_of(uri),
        uri=uri,
        data=data,
        sha256=sha256,
        width=decoded.width,
        height=decoded.height,
        orientation=decoded.orientation,
        proposals=_proposals(image, *size),
    )


def _proposals(image: ImageBoxes, width: int, height: int) -> Filtered:
    boxes = clip(image.boxes, width, height)
    solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if solid.any():
        return Filtered(boxes[solid], image.rank[solid], image.status if image.status in STATUSES else "ok")
    return Filtered(whole_image(width, height), np.zeros(1, dtype=np.float32), "fallback_whole_image")


def _lost(image: ImageBoxes, kept: Filtered) -> dict[str, int]:
    alone = kept.status == "fallback_whole_image" != image.status
    return {
        "boxes that are empty or outside of their image": len(image.boxes)
        - (0 if alone else len(kept.boxes)),
        "images without a box, which get one of their whole": int(alone),
        "cluster ids (see `aligndet cluster`)": 0 if image.clusters is None else len(image.clusters),
    }


def _rejection(uri: str, error: ImageRejected) -> Rejection:
    return Rejection(
        key=layout.key_of(uri),
        uri=uri,
        stage=error.stage,
        reason=error.reason,
        detail=error.detail,
        traceback_hash="",
    )
