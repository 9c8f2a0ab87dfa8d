"""Query detectors: DETR, Conditional, DAB and Deformable DETR, DINO, DDQ.

Here the class branch stays: it learns the cluster ids of the proposals, with the detector's own loss. The projector
stands beside it, on the output of every decoder layer, and the id of a query is that of the proposal its own
Hungarian assigner matched to it in that layer. As in the release all layers enter one contrastive loss.

Denoising queries (DINO, DDQ) are told their proposal, and dense queries (DDQ) have another assigner: both train
with their own losses and neither enters the contrastive one.
"""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from aligndet_train.detectors.adapter import EmbeddingTap, FamilyAdapter, Reading, assigned_ids
from aligndet_train.detectors.projectors import mlp_projector
from proposals.errors import AlignDetError

if TYPE_CHECKING:
    from aligndet_train.config import PretrainConfig

_LAYERS = range(32)


class QueryTap(nn.Module):
    """The projector, and what it needs to be read: decoder outputs, and the ids of the queries matched there."""

    def __init__(self, embed_dims: int, out_dims: int) -> None:
        super().__init__()
        self.projector = mlp_projector(embed_dims, out_dims)
        self._states: Tensor | None = None
        self._matches: list[Tensor] = []

    def take_states(self, head: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A forward pre-hook of the head: its first input is [layers, B, Q, D], the output of every layer."""
        self._states, self._matches = inputs[0], []

    def take_match(self, ids: Tensor) -> None:
        """One call of the assigner: the id [Q] of every query of one layer and image, layer by layer."""
        self._matches.append(ids)

    def drain(self) -> tuple[Tensor, list[Tensor]] | None:
        """Decoder outputs and matches of the last loss, once; None when there was none."""
        if self._states is None:
            return None
        states, matches = self._states, self._matches
        self._states, self._matches = None, []
        return states, matches


class ReportingAssigner:
    """The detector's own assigner; it also tells the tap which proposal each query got."""

    def __init__(self, assigner: Any, tap: QueryTap) -> None:
        self.assigner, self._tap = assigner, tap

    def assign(self, pred_instances: Any, gt_instances: Any, **context: Any) -> Any:
        """As mmdet's. ``gt_instances.ids`` [N] are the proposals' ids."""
        result = self.assigner.assign(pred_instances=pred_instances, gt_instances=gt_instances, **context)
        self._tap.take_match(assigned_ids(gt_instances.ids, result.gt_inds))
        return result

    def report(self, ids: Tensor, gt_inds: Tensor) -> None:
        """Of all layers and images. gt_inds: [L, B, Q] int64, mmdet's, but counted over ``ids`` [M] of all images."""
        for match in assigned_ids(ids, gt_inds).flatten(0, 1):
            self._tap.take_match(match)


class QueryAdapter(FamilyAdapter):
    """DETR and its descendants: Linear - ReLU - Linear on every decoder layer, beside the class branch."""

    family = "DETR"
    head_types = ("DETRHead", "ConditionalDETRHead", "DABDETRHead")
    defaults: ClassVar[dict[str, Any]] = {
        "epochs": 50,
        "base_batch_size": 64,
        "optimizer": {"type": "AdamW", "lr": 2e-4, "weight_decay": 1e-4},
        "warmup_steps": 0,
        "milestones": (40 / 50,),
        "clip_grad": 0.1,
        "proposals_per_image": 50,
        # A batch of DETR has fewer; DINO's 900 queries a layer would otherwise fill the card.
        "sampled_boxes": 4096,
    }
    has_classes = True
    dropped_losses = frozenset()
    embedding_layers = ("bbox_head.query_tap.",)
    cluster_layers = (
        "bbox_head.fc_cls.",
        "bbox_head.cls_branches.",
        "bbox_head.aux_cls_branches.",
        "dn_query_generator.label_embedding.",
    )
    predictors = (
        # A layer in DETR, the last one of three in DAB-DETR.
        "bbox_head.fc_reg.weight",
        "bbox_head.fc_reg.bias",
        "bbox_head.fc_reg.layers.2.",
        *(
            f"bbox_head.{branches}.{i}.4."
            for branches in ("reg_branches", "aux_reg_branches")
            for i in _LAYERS
        ),
    )

    @classmethod
    def matches(cls, detector_type: str, head_type: str) -> bool:
        """Detectors whose only head this is: language-conditioned ones (GLIP's kin) share it, but need text."""
        return head_type in cls.head_types and detector_type in _DETECTORS

    def pretraining_model(self, stock_model: Mapping[str, Any], config: "PretrainConfig") -> dict[str, Any]:
        """As many classes as there are clusters. Raises AlignDetError unless fewer proposals than queries are used."""
        require_fewer_proposals(
            stock_model["type"], stock_model.get("num_queries", 100), "queries", config.proposals_per_image
        )
        model = copy.deepcopy(dict(stock_model))
        model["bbox_head"]["num_classes"] = config.classes or 1
        return model

    def targets(self, data_samples: list[Any]) -> list[Any]:
        """Clusters as labels, the proposals' ids beside them."""
        return [_with_clusters(sample) for sample in data_samples]

    def convert(self, detector: nn.Module, embed_dims: int) -> None:
        """See FamilyAdapter."""
        head: Any = detector.bbox_head
        head.query_tap = QueryTap(head.embed_dims, embed_dims)
        head.register_forward_pre_hook(head.query_tap.take_states)
        head.assigner = ReportingAssigner(head.assigner, head.query_tap)

    def taps(self, detector: nn.Module) -> list[EmbeddingTap]:
        """None: classes stay, see ``read``."""
        return []

    def read(self, detector: nn.Module) -> list[Reading | None]:
        """The matching queries of all decoder layers, as one reading."""
        head: Any = detector.bbox_head
        # DDQ's loss registers these a second time: a checkpoint would hold names that a fresh detector lacks.
        detector.get_submodule("decoder")._modules.pop("aux_reg_branches", None)
        found = head.query_tap.drain()
        if found is None:
            return [None]
        states, matches = found
        queries = _matching_queries(detector, states)
        # Encoder outputs of two-stage detectors are matched after all decoder layers, and are no queries.
        ids = torch.cat(matches[: len(queries)])
        return [Reading(head.query_tap.projector(torch.cat(queries)), ids)]


class DeformableQueryAdapter(QueryAdapter):
    """Deformable DETR and its descendants, with the values that the release has for it, not DETR's."""

    head_types = ("DeformableDETRHead", "DINOHead", "DDQDETRHead")
    defaults: ClassVar[dict[str, Any]] = {
        **QueryAdapter.defaults,
        "epochs": 12,
        "base_batch_size": 32,
        "milestones": (8 / 12, 11 / 12),
        "proposals_per_image": 150,
    }


def require_fewer_proposals(detector_type: str, places: int, called: str, proposals: int | None) -> None:
    """Raise AlignDetError unless fewer ``proposals`` an image are used than there are ``places`` to match them to.

    called: what the places of ``detector_type`` are, in a user's words. proposals: None for all there are.
    """
    if proposals is None or proposals >= places:
        raise AlignDetError(
            f"{detector_type} has {places} {called} an image and can match no more proposals, yet "
            f"proposals_per_image is {proposals}: set a smaller one, --cfg-options "
            f"pretrain.proposals_per_image={min(50, places // 2)}"
        )


_DETECTORS = ("DETR", "ConditionalDETR", "DABDETR", "DeformableDETR", "DINO", "DDQDETR")


def _with_clusters(sample: Any) -> Any:
    proposals = sample.gt_instances
    sample = sample.new()
    sample.gt_instances = InstanceData(
        bboxes=proposals.bboxes, labels=proposals.clusters, ids=proposals.labels
    )
    return sample


def _matching_queries(detector: Any, states: Tensor) -> list[Tensor]:
    """Of ``states`` [layers, B, Q, D], for each layer and image, the queries [q, D] that its assigner saw."""
    layers, images = states.shape[:2]
    places = [(layer, image) for layer in range(layers) for image in range(images)]
    if type(detector).__name__ != "DDQDETR":
        # Denoising queries come first.
        return [states[layer, image, -detector.num_queries :] for layer, image in places]
    # DDQ: denoising, distinct and dense queries; from the second layer on, only those that are still distinct.
    first, count = detector.cache_dict["dis_query_info"]
    distinct = states[:, :, first : first + count]
    masks, heads = detector.cache_dict["distinct_query_mask"], detector.cache_dict["num_heads"]
    return [
        distinct[layer, image][masks[layer - 1][image * heads][0]] if layer else distinct[layer, image]
        for layer, image in places
    ]
