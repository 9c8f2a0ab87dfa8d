"""Prometheus metrics of a job, through Ray's own exporter."""

from proposals.dataset.manifest import CommitRecord

_SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000]


class Metrics:
    """Counts what shards gave. On /metrics of the driver's node, prefixed with ``ray_``."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Histogram

        self._images = Counter("aligndet_images", "Images mined.")
        self._proposals = Counter("aligndet_proposals", "Boxes kept.")
        self._rejected = Counter("aligndet_rejected", "Images rejected.", tag_keys=("reason",))
        self._stages = Counter("aligndet_stage_seconds", "Seconds spent by stage.", tag_keys=("stage",))
        self._shards = Histogram("aligndet_shard_seconds", "Seconds per shard.", boundaries=_SECONDS)

    def add(self, record: CommitRecord) -> None:
        """Count one finished shard."""
        if record.shard.images:
            self._images.inc(record.shard.images)
            self._proposals.inc(record.shard.proposals)
        for rejection in record.rejected:
            self._rejected.inc(1, {"reason": rejection.reason})
        for stage, seconds in record.timing.items():
            if stage != "total" and seconds > 0:
                self._stages.inc(seconds, {"stage": stage})
        self._shards.observe(record.timing["total"])
