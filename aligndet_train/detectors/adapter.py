"""The four questions a detector family answers, and the device that makes the answers short.

Every mmdet head ends its target assignment in one call: ``loss_cls(predictions, labels, ...)``. Give the head the
proposals' ids as labels and an embedding layer as class predictor, put an EmbeddingTap in the place of
``loss_cls``, and that call hands over exactly (embedding, assigned id) of every predicted box: the detector's own
assigner, samplers and box losses run untouched.

Where a head also asks class scores for something else (an assigner's cost, a box loss's weight), it must get the
same score for every box, because a proposal has no class: see neutral.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

if TYPE_CHECKING:
    from aligndet_train.config import PretrainConfig

# The id of boxes assigned to no proposal. mmdet calls a label foreground when 0 <= label < num_classes, and
# background when it equals num_classes: so this is what converted heads have as num_classes.
BACKGROUND = torch.iinfo(torch.int32).max


@dataclass(frozen=True)
class Reading:
    """Predicted boxes of a view: embeddings [N, D] (not normalised), and the id [N] int64 each was assigned.

    weight: of their contrastive loss in the total (the stage weights of cascades).
    """

    embeddings: Tensor
    ids: Tensor
    weight: float = 1.0

    def take(self, rows: Tensor) -> "Reading":
        """The boxes at ``rows`` [M] int64."""
        return Reading(self.embeddings[rows], self.ids[rows], self.weight)


class EmbeddingTap(BaseModule):
    """Stands where a head's ``loss_cls`` was and keeps what it is called with; its own loss is zero.

    weight: what the contrastive loss of its boxes weighs.
    """

    # What heads ask of a loss besides calling it.
    use_sigmoid = True
    custom_activation = False
    custom_accuracy = False
    custom_cls_channels = False
    loss_weight = 1.0

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight
        self._readings: list[Reading] = []
        self._held: list[Tensor] = []
        self._expected: list[Tensor] = []

    def hold(self, embeddings: Tensor) -> None:
        """``embeddings`` [N, D] stand for the scores of the next call that no held ones stand for yet."""
        self._held.append(embeddings)

    def expect(self, ids: Tensor) -> None:
        """``ids`` [N] are, after those expected already, what the next call's rows were assigned."""
        self._expected.append(ids)

    def forward(
        self,
        pred: Tensor,
        target: Tensor | tuple[Tensor, Tensor],
        weight: Tensor | list[Tensor] | None = None,
        reduction_override: str | None = None,
        **_: Any,
    ) -> Tensor:
        """Keep ``pred`` [N, D] and ``target`` [N]; rows of weight 0 were ignored by the assigner and are left out.

        Of a pair of targets the first are the ids. A call that asks for the loss of every row ranks boxes before
        they are assigned: it gets zeros [N, 1], and nothing is kept.
        """
        if reduction_override == "none":
            return pred.new_zeros((len(pred), 1))
        embeddings = self._held.pop(0) if self._held else pred
        ids = target[0] if isinstance(target, tuple) else target
        if self._expected:
            ids, self._expected = torch.cat(self._expected), []
        if isinstance(weight, list):
            weight = torch.cat([level.reshape(-1) for level in weight])
        if weight is not None:
            # One wait for a GPU; a mask would be counted for each.
            rows = (weight > 0).nonzero().squeeze(1)
            embeddings, ids = embeddings[rows], ids[rows]
        self._readings.append(Reading(embeddings, ids, self.weight))
        return pred[:0].sum()

    def drain(self) -> list[Reading]:
        """The readings since the last call, in call order."""
        readings, self._readings = self._readings, []
        self._held, self._expected = [], []
        return readings

    def read(self) -> Reading | None:
        """The boxes of all calls since the last ``read``, as one; None when there was no call."""
        readings = self.drain()
        if not readings:
            return None
        return Reading(
            torch.cat([r.embeddings for r in readings]), torch.cat([r.ids for r in readings]), self.weight
        )


def assigned_ids(ids: Tensor, gt_inds: Tensor) -> Tensor:
    """[...]: for every box the id of its proposal, of ``ids`` [M], or BACKGROUND.

    gt_inds: [...] int64 as mmdet's assigners give them, row + 1 of the proposal, 0 for none, -1 for ignored.
    """
    return torch.cat([ids.new_full((1,), BACKGROUND), ids])[gt_inds.clamp(min=0)]


class FamilyAdapter(ABC):
    """What is particular to one detector family."""

    family: ClassVar[str]
    """Name shown to users."""
    head_types: ClassVar[tuple[str, ...]]
    """mmdet class names of the final heads this adapter converts."""
    defaults: ClassVar[dict[str, Any]]
    """PretrainConfig fields of the release for this family."""
    dropped_losses: ClassVar[frozenset[str]]
    """Names of stock losses and figures that mean nothing once labels are ids, without the stage ("s0."); all others
    stay."""
    embedding_layers: ClassVar[tuple[str, ...]]
    """Stock layers replaced by the unsupervised head, as state-dict prefixes: never exported."""
    predictors: ClassVar[tuple[str, ...]]
    """Final class-specific predictors, as prefixes: exported only when asked for."""
    untrained: ClassVar[tuple[str, ...]] = ()
    """Stock layers that no loss reaches without labels (mask heads), as prefixes: frozen, never exported."""
    has_classes: ClassVar[bool] = False
    """Whether the class branch stays and learns the proposals' clusters."""
    cluster_layers: ClassVar[tuple[str, ...]] = ()
    """What that branch predicts clusters with, as prefixes: never exported, clusters being nobody's classes."""

    @classmethod
    def matches(cls, detector_type: str, head_type: str) -> bool:
        """Whether this adapter converts the detector. Both are bare class names (see class_names.py)."""
        return head_type in cls.head_types

    def pretraining_model(self, stock_model: Mapping[str, Any], config: "PretrainConfig") -> dict[str, Any]:
        """The ``model`` config to build for pretraining: the stock one, unless classes keep a meaning.

        Raises AlignDetError when it cannot be pretrained with ``config``.
        """
        return dict(stock_model)

    def targets(self, data_samples: list[Any]) -> list[Any]:
        """What the detector is given as ground truth: ``labels`` are the proposals' ids (TwoViewPreprocessor)."""
        return data_samples

    @abstractmethod
    def convert(self, detector: nn.Module, embed_dims: int) -> None:
        """Replace, in place, the class predictor by f_con + projector and ``loss_cls`` by an EmbeddingTap.

        Raises AlignDetError for a config of the family that cannot be converted.
        """

    @abstractmethod
    def taps(self, detector: nn.Module) -> list[EmbeddingTap]:
        """The taps of a converted detector."""

    def keeps(self, loss: str) -> bool:
        """Whether a stock loss or figure, named as ``detector.loss`` names it, stays."""
        return loss.rsplit(".", 1)[-1] not in self.dropped_losses

    def read(self, detector: nn.Module) -> list[Reading | None]:
        """What the last ``detector.loss`` call predicted, by stage (one per tap); None for a stage without boxes."""
        return [tap.read() for tap in self.taps(detector)]

    def to_stock_shape(self, name: str, value: Tensor, stock: Tensor) -> Tensor | None:
        """``value`` in the shape the stock detector has under ``name``; None when there is none."""
        return value if value.shape == stock.shape else None
