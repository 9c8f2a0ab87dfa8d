"""Settings of the image-domain stage."""

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from aligndet_train.image_domain.views import ImageViewConfig
from aligndet_train.setting_types import Count, Positive
from proposals.errors import AlignDetError

Crops = Literal["images", "proposals"]
Optimizer = Literal["sgd", "adamw"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ImageDomainConfig:
    """What every method has. Only those below can be run: they have a ``method`` and a ``title``.

    epochs / iterations: length of the run; iterations, when given, wins. batch_size: images a step on one GPU.
    lr: for base_batch_size images a step, scaled linearly; its cosine ends at zero. The default is for the method's own
    optimizer: with another give another. momentum: of sgd alone.
    crops: what a view is drawn from: whole ``images``, or one of the ``proposals_per_image`` best ``proposals``,
    another in every epoch, grown by crop_context of its sides; none shorter than min_crop px is taken. max_side: px of
    the long side that what is larger is scaled down to before it goes to the device.
    projection_dims: width of what the loss compares. collapse_ratio: of 1/sqrt(projection_dims), below which the mean
    deviation of the output over collapse_window steps counts as collapsed.
    """

    method: ClassVar[str]
    title: ClassVar[str]

    epochs: Count = 100
    iterations: Count | None = None
    batch_size: Count = 256
    base_batch_size: Count = 256
    optimizer: Optimizer = "sgd"
    lr: Positive = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    crops: Crops = "images"
    proposals_per_image: Count = 30
    crop_context: Annotated[float, Field(ge=0)] = 0.1
    min_crop: Count = 32
    max_side: Count = 640
    projection_dims: Count = 2048
    collapse_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5
    collapse_window: Count = 100
    shard_window: Count = 8
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    views: ImageViewConfig = field(default_factory=ImageViewConfig)

    def remarks(self, images: int) -> list[str]:
        """What a run on so many images should know, a line each."""
        return []


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SimSiamConfig(ImageDomainConfig):
    """SimSiam (Chen & He 2021); defaults are the paper's for ResNet-50.

    hidden_dims, predictor_dims: widths inside projector and predictor; the predictor's learning rate stays as it
    begins. stop_gradient: the paper's; without it the output collapses.
    """

    method: ClassVar[str] = "simsiam"
    title: ClassVar[str] = "SimSiam"

    hidden_dims: Count = 2048
    predictor_dims: Count = 512
    stop_gradient: bool = True


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MocoConfig(ImageDomainConfig):
    """MoCo v2 (Chen et al. 2020); defaults are the paper's for ResNet-50 and 200 epochs.

    hidden_dims: width inside the projector; None takes that of the backbone's features. temperature: the loss's.
    queue_size: keys of past steps that serve as negatives; of a dataset with fewer images a picture's own old keys are
    among them. key_momentum: the key encoder's; that of its batch statistics rises to it as (step + 1) / (step + 2).
    collapse_ratio: lower than SimSiam's, as the projector has no normalisation and begins at a third of 1/sqrt(dims).
    """

    method: ClassVar[str] = "moco_v2"
    title: ClassVar[str] = "MoCo v2"

    epochs: Count = 200
    lr: Positive = 0.03
    projection_dims: Count = 128
    collapse_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    hidden_dims: Count | None = None
    temperature: Positive = 0.2
    queue_size: Count = 65_536
    key_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.999

    def remarks(self, images: int) -> list[str]:
        """That the queue is longer than the dataset."""
        if self.queue_size <= images:
            return []
        return [
            f"the queue of {self.queue_size:,} keys is longer than the {images:,} images: an image's own old keys are "
            "among those that it is pushed away from. Shorten it, in a new --work-dir: --cfg-options "
            f"queue_size={max(1, images // 4)}"
        ]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SimClrConfig(ImageDomainConfig):
    """SimCLR (Chen et al. 2020), with MoCo v2's views, and AdamW in place of LARS, which is for batches of thousands.

    hidden_dims: width inside the projector; None takes that of the backbone's features. temperature: the loss's.
    collapse_ratio: as MoCo's, the projector's output is not normalised either.
    """

    method: ClassVar[str] = "simclr"
    title: ClassVar[str] = "SimCLR"

    optimizer: Optimizer = "adamw"
    lr: Positive = 1e-3
    projection_dims: Count = 128
    collapse_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    hidden_dims: Count | None = None
    temperature: Positive = 0.2

    def remarks(self, images: int) -> list[str]:
        """That a step takes pictures twice."""
        if self.batch_size <= images:
            return []
        return [
            f"a step of {self.batch_size:,} takes some of the {images:,} images twice, and pushes an image away from "
            f"itself. Take fewer, in a new --work-dir: --batch-size {max(2, images // 2)}"
        ]


CONFIGS: dict[str, type[ImageDomainConfig]] = {
    kind.method: kind for kind in (SimSiamConfig, MocoConfig, SimClrConfig)
}


def image_domain_config(given: Mapping[str, Any], method: str = "simsiam") -> ImageDomainConfig:
    """Build the settings of ``method`` from plain data; a dotted name reaches inside: ``{"views.size": 96}``.

    Raises AlignDetError for an unknown method, and naming every wrong key or value.
    """
    if method not in CONFIGS:
        raise AlignDetError(f"no method {method!r}: {', '.join(CONFIGS)}")
    nested: dict[str, Any] = {}
    # What is whole first, so that a dotted name reaches inside it in whatever order they come.
    for name, value in sorted(given.items(), key=lambda item: item[0].count(".")):
        *outer, last = name.split(".")
        place: Any = nested
        for part in outer:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise AlignDetError(
                    f"{name}={value!r} reaches inside {part}, which is given as {place!r}: drop one"
                )
        place[last] = dict(value) if isinstance(value, Mapping) else value
    try:
        return TypeAdapter(CONFIGS[method]).validate_python(nested)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" for e in error.errors()]
        known = ", ".join(one.name for one in dataclasses.fields(CONFIGS[method]))
        raise AlignDetError(
            "settings of the image-domain stage:\n  " + "\n  ".join(lines) + f"\nknown: {known}"
        ) from error
