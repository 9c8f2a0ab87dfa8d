"""What decides the bytes of a dataset. It travels in the metadata of plan.parquet."""

import hashlib
import json

from pydantic import BaseModel, ConfigDict

from proposals.dataset.manifest import Manifest, SourceInfo
from proposals.image_roots import ImageRoot
from proposals.recipe import Recipe

_DISPATCH = "opencv_dispatch"


class JobIdentity(BaseModel):
    """Everything that decides the bytes of a dataset: two jobs with the same identity write the same files.

    images: where they stay, None when they become part of the dataset.
    """

    model_config = ConfigDict(frozen=True)

    recipe: Recipe
    source: SourceInfo
    images_per_shard: int
    versions: dict[str, str]
    images: ImageRoot | None = None

    @classmethod
    def of(cls, manifest: Manifest) -> "JobIdentity":
        """The identity of the job that ``manifest`` closed."""
        return cls(**{name: getattr(manifest, name) for name in cls.model_fields})

    def as_told_by(self, other: "JobIdentity") -> "JobIdentity":
        """This identity with the CPU level of ``other``, on which no byte depends, and without a column of images when
        ``other``, an older one, does not tell its own.
        """
        versions = dict(self.versions)
        if _DISPATCH in versions and _DISPATCH in other.versions:
            versions[_DISPATCH] = other.versions[_DISPATCH]
        told = self.model_copy(update={"versions": versions})
        if other.source.column is not None:
            return told
        return told.model_copy(update={"source": self.source.model_copy(update={"column": None})})

    def fingerprint(self) -> str:
        """sha256, in hex, of the canonical JSON."""
        canonical = json.dumps(self.model_dump(exclude_none=True), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def diff(self, other: "JobIdentity", *, versions: bool = True) -> list[str]:
        """What differs, one line per field: ``recipe.max_side: 512 there, 640 here``, there being ``other``."""
        here, there = (_flat(job.model_dump(exclude_none=True)) for job in (self, other))
        names = [name for name in sorted({*here, *there}) if versions or not name.startswith("versions.")]
        return [
            f"{name}: {there.get(name)} there, {here.get(name)} here"
            for name in names
            if here.get(name) != there.get(name)
        ]


def _flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat.update(
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
        )
    return flat
