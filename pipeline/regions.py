"""Region features of a whole dataset: Ray actors that each hold a frozen backbone, a shard at a time.

The one module here that needs the trainer's half; it imports it when it runs (torch: inside the actor).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.cluster import connected
from pipeline.signals import Drain
from proposals.dataset import ProposalDataset, open_dataset
from proposals.dataset.as_mined import decoded_as_mined
from proposals.dataset.manifest import ShardEntry
from proposals.dataset.regions import Features, RegionStore
from proposals.errors import AlignDetError
from proposals.images import ImageRejected

if TYPE_CHECKING:
    from aligndet_train.regions import RegionEncoder, RegionSettings

Device = Literal["auto", "cpu", "cuda"]
_RETRIES = 2


@dataclass(frozen=True)
class RegionOptions:
    """How features are computed; only the first three and the weights change them.

    backbone: name of a shipped detector, or a mmdet config file. options: key=value changes to it. short_side: px.
    workers: actors, one core each (or one GPU). address: of a Ray cluster, None for a private one. weights: of the
    backbone, instead of the config's. quiet: what they change is not said.
    """

    backbone: str
    options: Sequence[str]
    short_side: int = 480
    workers: int | None = None
    address: str | None = None
    device: Device = "auto"
    weights: Path | None = None
    quiet: bool = False


@dataclass(frozen=True)
class RegionOutcome:
    """What a run did: shards it wrote, shards that were there, and the width C of the features."""

    written: int
    found: int
    channels: int


def extract_regions(root: Path, options: RegionOptions, report: Callable[[int, int], None]) -> RegionOutcome:
    """Write features of every box of the dataset ``root`` into its regions.zarr; what is there is kept.

    report: called with (shards done, shards in all). Raises AlignDetError: no dataset, another backbone's features
    there, weights or an image that cannot be read, a worker that died three times, interrupted (exit code 130 or 143).
    """
    from aligndet_train.cli import parse_options
    from aligndet_train.regions import region_settings

    changes = parse_options(list(options.options))
    settings = region_settings(
        options.backbone,
        changes,
        options.short_side,
        4 * options.short_side,
        options.weights,
        quiet=options.quiet,
    )
    root = root.resolve()  # workers are in folders of their own
    dataset, store = open_dataset(root), RegionStore(root)
    shards = [shard for shard in dataset.manifest.shards if shard.images]
    if not shards:
        raise AlignDetError(f"{root} holds no image, so there are no regions.")
    with Drain() as drain:
        try:
            with connected(options.address, options.workers) as ray:
                drain.install()
                crew = _Crew(ray, settings, options, len(shards))
                store.begin(crew.identity())
                missing = store.missing(dataset.manifest)
                found = len(shards) - len(missing)
                crew.run(store, missing, lambda done: report(found + done, len(shards)))
        except KeyboardInterrupt:
            raise _interrupted(store, dataset, drain.exit_code) from None
    return RegionOutcome(len(missing), found, store.read(shards[0]).shape[1])


class _Crew:
    """Actors, each with at most one shard in hand. They write; the driver only counts."""

    def __init__(self, ray: Any, settings: "RegionSettings", options: RegionOptions, shards: int) -> None:
        self._ray = ray
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        if options.device == "cuda" and not gpus:
            raise AlignDetError("--device cuda: Ray has no GPU here. Use --device cpu.")
        use_gpu = gpus > 0 and options.device != "cpu"
        room = gpus if use_gpu else int(resources.get("CPU", 1))
        count = max(1, min(options.workers or room, room, shards))
        actor = ray.remote(
            num_cpus=1, num_gpus=int(use_gpu), max_restarts=_RETRIES, max_task_retries=_RETRIES
        )(_RegionActor)
        self._actors = [actor.remote(settings, "cuda" if use_gpu else "cpu") for _ in range(count)]

    def identity(self) -> dict[str, Any]:
        """What the features depend on."""
        return dict(self._get(self._actors[0].identity.remote()))

    def run(self, store: RegionStore, shards: list[ShardEntry], report: Callable[[int], None]) -> None:
        """Let the actors write the features of ``shards``."""
        waiting, idle, done = list(reversed(shards)), list(self._actors), 0
        flying: dict[Any, Any] = {}
        report(done)
        while waiting or flying:
            while waiting and idle:
                actor = idle.pop()
                flying[actor.write.remote(store.root, waiting.pop())] = actor
            ready, _ = self._ray.wait(list(flying), num_returns=1)
            for reference in ready:
                idle.append(flying.pop(reference))
                self._get(reference)
                done += 1
                report(done)

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, AlignDetError):
                raise error.cause from None
            raise AlignDetError(f"a worker failed: {type(error.cause).__name__}: {error.cause}") from error
        except self._ray.exceptions.RayError as error:
            raise AlignDetError(
                f"a worker died {_RETRIES + 1} times ({type(error).__name__}), perhaps for want of memory: use fewer "
                "--workers. What is written is kept, the same command goes on from there"
            ) from error


class _RegionActor:
    """Holds the backbone; a Ray actor."""

    def __init__(self, settings: "RegionSettings", device: str) -> None:
        self._settings, self._device = settings, device
        self._dataset: ProposalDataset | None = None

    @cached_property
    def _encoder(self) -> "RegionEncoder":
        # When first used: of what fails in __init__ the driver learns that an actor died, not why.
        from aligndet_train.regions import RegionEncoder

        return RegionEncoder(self._settings, self._device)

    def identity(self) -> dict[str, Any]:
        return self._encoder.identity()

    def write(self, root: Path, shard: ShardEntry) -> None:
        if self._dataset is None or self._dataset.root != root:
            self._dataset = open_dataset(root)
        RegionStore(root).write(shard, self._features(self._dataset, shard))

    def _features(self, dataset: ProposalDataset, shard: ShardEntry) -> Features:
        position = dataset.shard_names.index(shard.name)
        first = int(dataset.shard_sizes[:position].sum())
        parts = []
        for record in dataset[first : first + shard.images]:
            try:
                image = decoded_as_mined(record, record.image_bytes(), dataset.manifest.recipe.max_pixels)
            except ImageRejected as error:
                raise AlignDetError(
                    f"{record.uri} of {dataset.root} no longer decodes ({error.reason}): see `aligndet verify`"
                ) from error
            features = self._encoder.encode(image.bgr, record.boxes)
            if not np.isfinite(features).all():
                raise AlignDetError(
                    f"the backbone gives values of {record.uri} that are NaN or beyond float16: no cluster can be "
                    "made of them. Check its weights (init_cfg) and the config's data_preprocessor, or scale its maps"
                )
            parts.append(features)
        return np.concatenate(parts)


def _interrupted(store: RegionStore, dataset: ProposalDataset, exit_code: int) -> AlignDetError:
    missing = len(store.missing(dataset.manifest))
    error = AlignDetError(
        f"interrupted: {missing} shards of {dataset.root} are missing. Run the same command again to resume."
    )
    error.exit_code = exit_code
    return error
