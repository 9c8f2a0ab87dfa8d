"""The longer plan beside that of a finished dataset, and the shards behind its own: put there, taken back."""

from collections.abc import Callable
from pathlib import Path

from pipeline.claim import Say, taken_over
from pipeline.plan import Plan, PlanFile
from pipeline.proofs import committed_records
from proposals.dataset import layout
from proposals.dataset.assemble import rejected_bytes, write_plan
from proposals.dataset.files import file_sha256, publish, remove_leftovers, temporary_beside
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import FileEntry, Manifest, read_manifest, require_listable
from proposals.errors import AlignDetError
from proposals.paths import is_there

# What `mine` alone writes beside the shards of a dataset; other verbs may be at work there.
_OWN = (layout.PLAN, layout.APPEND, layout.REJECTED)


def start_append(out: Path, extended: Plan, identity: JobIdentity, manifest: Manifest) -> None:
    """Write ``extended`` beside the plan of the dataset in ``out``, unless it is there, and drop what another left.

    Raises AlignDetError when ``manifest`` is no longer that of the dataset, or could not list so many shards.
    """
    require_listable(extended.shards, extended.images, identity.images_per_shard)
    path = out / layout.APPEND
    remove_own_leftovers(out)
    with temporary_beside(path) as (temporary,):
        write_plan(temporary, extended.parts(), identity)
        if is_there(path) and file_sha256(path) == file_sha256(temporary):
            return
        _remove_shards_behind(out, manifest)
        publish(temporary, path)


def remove_own_leftovers(out: Path) -> None:
    """Delete what runs that were killed had half written to the dataset in ``out``."""
    remove_leftovers(out / layout.SHARDS)
    remove_leftovers(out, of=_OWN)


def take_back_append(out: Path, manifest: Manifest, say: Say) -> None:
    """Remove what is there of adding images that are gone again: their shards, and what was written to commit them.

    Raises AlignDetError, with nothing removed, when the committed files cannot be written again.
    """
    if not is_there(out / layout.APPEND):
        return
    _require_unchanged(out, manifest)
    plan = PlanFile(out / layout.PLAN, len(manifest.shards))
    identity = JobIdentity.of(manifest)
    _restore(out, manifest.plan, lambda file: write_plan(file, plan.parts(), identity))
    _restore(out, manifest.rejected, lambda file: file.write_bytes(_rejected_bytes(out, manifest)))
    removed = _remove_shards_behind(out, manifest)
    (out / layout.APPEND).unlink()
    say(f"the images that were being added are gone: {removed} files of their shards are removed")


def _restore(out: Path, entry: FileEntry, write: Callable[[Path], object]) -> None:
    path = out / entry.path
    if file_sha256(path) == entry.sha256:
        return
    with temporary_beside(path) as (temporary,):
        write(temporary)
        if file_sha256(temporary) != entry.sha256:
            raise AlignDetError(
                f"{path} is of images that are gone, and cannot be written again as it was committed, perhaps for "
                "another version of pyarrow. Bring the images back and run the same command"
            )
        publish(temporary, path)


def _rejected_bytes(out: Path, manifest: Manifest) -> bytes:
    return rejected_bytes(list(committed_records(out, manifest).values()))


def _remove_shards_behind(out: Path, manifest: Manifest) -> int:
    """Remove those of an append of other images, never committed; returns how many files that were."""
    _require_unchanged(out, manifest)
    stale = [
        path
        for path in (out / layout.SHARDS).glob("*.*")
        if path.stem.isdigit() and int(path.stem) >= len(manifest.shards)
    ]
    for path in stale:
        path.unlink()
    return len(stale)


def _require_unchanged(out: Path, manifest: Manifest) -> None:
    if read_manifest(out) != manifest:
        raise taken_over(out)
