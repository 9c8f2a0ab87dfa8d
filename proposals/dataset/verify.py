"""Is a dataset what it was when it was committed, and does it keep the promises of the format?

Shallow: every file but the tars is read; of those, presence, size and two headers are checked. Deep: every byte.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from proposals.dataset import layout
from proposals.dataset.assemble import checked_plan, read_identity, rejected_rows
from proposals.dataset.bounds import MAX_MANIFEST_BYTES, read_bounded, read_parquet
from proposals.dataset.checks.arrays import array_faults
from proposals.dataset.checks.features import feature_faults
from proposals.dataset.checks.folder import file_faults, strangers
from proposals.dataset.checks.shard import Owners, Problem, check_shard, seal_faults
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import Manifest, read_manifest, read_record
from proposals.dataset.processes import ProcessDiedError, map_apart
from proposals.errors import AlignDetError, NewerFormatError, UnansweredError
from proposals.paths import as_path, is_there


@dataclass(frozen=True)
class Report:
    """What `verify_dataset` found.

    unfinished: files that readers ignore, of a run that was stopped or still runs. listed: False where a web
    server does not list its files, so that only those which dataset.json names were looked at.
    """

    dataset: Path
    deep: bool
    shards: int
    images: int
    proposals: int
    problems: tuple[Problem, ...]
    unfinished: tuple[str, ...] = ()
    listed: bool = True

    @property
    def damaged_shards(self) -> tuple[str, ...]:
        """Names of the shards with a problem, ascending."""
        return tuple(sorted({problem.shard for problem in self.problems if problem.shard is not None}))

    def as_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        content = asdict(self) | {"dataset": str(self.dataset), "clean": not self.problems}
        return {**content, "damaged_shards": self.damaged_shards}


def verify_dataset(root: Path, *, deep: bool = False, workers: int = 1) -> Report:
    """Check the dataset in ``root``; with ``deep`` also the content of every tar. Shards are shared by ``workers``.

    Raises AlignDetError when the folder holds no dataset.json, NewerFormatError when that is of a newer format,
    UnansweredError when a file at a URL cannot be read now, or is refused, which says nothing of it;
    everything else is a problem in the report.
    """
    root = as_path(root)
    try:
        manifest = read_manifest(root)
    except (NewerFormatError, UnansweredError):
        raise
    except AlignDetError as error:
        if not is_there(root / layout.MANIFEST):
            raise
        return Report(root, deep, 0, 0, 0, (Problem(layout.MANIFEST, str(error)),))
    found = strangers(root, manifest)
    problems = [Problem(path, what) for path, what in found.unexpected]
    faults = seal_faults(root / layout.MANIFEST, MAX_MANIFEST_BYTES)
    problems += [Problem(layout.MANIFEST, what) for what in faults]
    problems += _recipe_problems(root, manifest) + _totals_problems(manifest)
    for entry in manifest.consolidated:
        problems += [Problem(entry.path, what) for what in file_faults(root, entry, content=True)]
    problems += [Problem(path, what) for path, what in feature_faults(root, manifest, deep=deep)]
    plan, plan_problems = _plan(root, manifest)
    problems += plan_problems + _rejected_problems(root, manifest)
    problems += _shard_problems(root, manifest, plan, deep, workers)
    if deep and manifest.consolidated and not problems:
        problems += [Problem(layout.CONSOLIDATED, what) for what in array_faults(root, manifest)]
    sizes = len(manifest.shards), manifest.totals.images, manifest.totals.proposals
    return Report(root, deep, *sizes, tuple(problems), found.unfinished, found.listed)


def _recipe_problems(root: Path, manifest: Manifest) -> list[Problem]:
    # Of the recipe as it is written: our model would add the fields that it has got since.
    recipe = json.loads(read_bounded(root / layout.MANIFEST, MAX_MANIFEST_BYTES))["recipe"]
    canonical = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
    if hashlib.sha256(canonical.encode()).hexdigest() == manifest.recipe_fingerprint:
        return []
    return [Problem(layout.MANIFEST, "recipe_fingerprint is not that of the recipe")]


def _totals_problems(manifest: Manifest) -> list[Problem]:
    """Of the totals that readers show and that opening does not ask for; the others were refused there."""
    totals, statuses = manifest.totals, Counter[str]()
    for shard in manifest.shards:
        statuses.update(shard.statuses)
    size = sum(entry.bytes for shard in manifest.shards for entry in shard.files)
    problems = []
    if totals.bytes != size:
        problems.append(f"totals.bytes is {totals.bytes}, the files of its shards have {size}")
    if Counter(totals.statuses) != statuses:
        problems.append(
            f"totals.statuses is {totals.statuses}, those of its shards add up to {dict(statuses)}"
        )
    return [Problem(layout.MANIFEST, what) for what in problems]


def _shard_problems(
    root: Path, manifest: Manifest, plan: pa.Table | None, deep: bool, workers: int
) -> Iterator[Problem]:
    count = len(manifest.shards)
    if workers == 1:
        yield from _check_range(root, manifest, plan, deep, 0, count)
        return
    # Each process reads manifest and plan itself: sent along with every shard they would cost more than the checks.
    edges = np.linspace(0, count, min(count, 4 * workers) + 1, dtype=int).tolist()
    check = partial(_check_apart, root, plan is not None, deep)
    try:
        found = map_apart(check, list(pairwise(edges)), workers)
    except ProcessDiedError as error:
        raise AlignDetError(
            f"a process that checked {root} died, perhaps for want of memory: use fewer --workers."
        ) from error
    yield from chain.from_iterable(found)


def _check_apart(root: Path, with_plan: bool, deep: bool, span: tuple[int, int]) -> list[Problem]:
    first, last = span
    manifest = read_manifest(root)
    plan = read_parquet(root / layout.PLAN, manifest.source.images) if with_plan else None
    return list(_check_range(root, manifest, plan, deep, first, last))


def _check_range(
    root: Path, manifest: Manifest, plan: pa.Table | None, deep: bool, first: int, last: int
) -> Iterator[Problem]:
    owners = Owners.of(manifest)
    for entry, planned in zip(manifest.shards[first:last], _parts(plan, first, last), strict=True):
        yield from check_shard(entry, planned, root=root, manifest=manifest, owners=owners, deep=deep)


def _plan(root: Path, manifest: Manifest) -> tuple[pa.Table | None, list[Problem]]:
    """The plan, None when it cannot be trusted, and what is wrong with it."""
    faults = list(file_faults(root, manifest.plan, content=True))
    if faults:
        return None, [Problem(layout.PLAN, what) for what in faults]
    try:
        path = root / layout.PLAN
        plan = checked_plan(path, read_parquet(path, manifest.source.images))
        plan.validate(full=True)
        if read_identity(path) != JobIdentity.of(manifest):
            return None, [Problem(layout.PLAN, "its metadata is of another job than dataset.json")]
        shards = plan.column("shard").to_numpy()
        unique = pc.count_distinct(plan.column("key")).as_py() == plan.num_rows
    except UnansweredError:
        raise
    except (AlignDetError, ValueError) as error:
        return None, [Problem(layout.PLAN, str(error))]
    if not unique:
        return plan, [Problem(layout.PLAN, "two images have the same key")]
    # A shard whose images were all rejected, and then tried again in another shard, has none left.
    empty = {number for number, shard in enumerate(manifest.shards) if not shard.images}
    missing = set(range(len(manifest.shards))) ^ set(np.unique(shards).tolist())
    if (np.diff(shards) < 0).any() or not missing <= empty:
        return None, [Problem(layout.PLAN, "its shards are not those of dataset.json, in order")]
    return plan, []


def _parts(plan: pa.Table | None, first: int, last: int) -> Iterator[pa.Table | None]:
    if plan is None:
        yield from [None] * (last - first)
        return
    names = plan.select(["key", "uri"])
    starts = np.searchsorted(plan.column("shard").to_numpy(), np.arange(first, last + 1)).tolist()
    for start, stop in pairwise(starts):
        yield names.slice(start, stop - start)


def _rejected_problems(root: Path, manifest: Manifest) -> list[Problem]:
    faults = list(file_faults(root, manifest.rejected, content=True))
    if faults:
        return [Problem(layout.REJECTED, what) for what in faults]
    try:
        found = read_parquet(root / layout.REJECTED, manifest.totals.rejected)
    except UnansweredError:
        raise
    except AlignDetError as error:
        return [Problem(layout.REJECTED, str(error))]
    try:
        records = [read_record(layout.record_path(root, shard.name)) for shard in manifest.shards]
    except UnansweredError:
        raise
    except AlignDetError:
        return []  # the record is named with its shard
    if found.equals(rejected_rows(records)):
        return []
    return [Problem(layout.REJECTED, "does not hold what the commit records say")]
