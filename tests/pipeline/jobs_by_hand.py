"""A small job by hand: begun, mined shard by shard and committed, so that a test can stop it anywhere."""

import shutil
from pathlib import Path

from pipeline.begin import begin
from pipeline.commit import commit
from pipeline.plan import ListedPlan, ShardTask, make_plan
from pipeline.shard_task import Work, mine_shard
from pipeline.sources import FolderSource
from pipeline.workspace import Workspace
from proposals.dataset.identity import JobIdentity
from proposals.dataset.manifest import CommitRecord, library_versions
from proposals.image_roots import Kind
from proposals.recipe import Recipe

RECIPE = Recipe(max_side=64)


def two_images(photos: Path, folder: Path) -> Path:
    """A folder of two photographs."""
    folder.mkdir()
    for name in ("cat.jpg", "china.jpg"):
        shutil.copy(photos / name, folder / name)
    return folder


def identity_of(
    plan: ListedPlan, recipe: Recipe, images_per_shard: int, kind: Kind = "folder"
) -> JobIdentity:
    """Of `aligndet mine` here and now, with what ``plan`` lists."""
    return JobIdentity(
        recipe=recipe,
        source=plan.source(kind),
        images_per_shard=images_per_shard,
        versions=library_versions(),
    )


def begun(images: Path, out: Path, said: list[str] | None = None, recipe: Recipe = RECIPE) -> Workspace:
    plan = make_plan(FolderSource(images).entries(), 2)
    return begin(out, plan, identity_of(plan, recipe, 2), (said if said is not None else []).append)


def mined(images: Path, opened: Workspace, tasks: list[ShardTask]) -> dict[str, CommitRecord]:
    work = Work(FolderSource(images), opened.out, opened.identity.recipe, opened.identity.fingerprint())
    return {task.name: mine_shard(task, work) for task in tasks}


def finish(images: Path, opened: Workspace) -> None:
    commit(opened, {**opened.done, **mined(images, opened, list(opened.pending))})
