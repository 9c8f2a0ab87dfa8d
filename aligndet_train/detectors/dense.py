"""What one-stage heads have in common: a class predictor on a tower of convolutions, one prediction per anchor."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from aligndet_train.detectors.adapter import BACKGROUND, EmbeddingTap, FamilyAdapter
from aligndet_train.detectors.projectors import conv_projector


class DenseHeadAdapter(FamilyAdapter):
    """conv - ReLU - 1x1 conv in the place of the class predictor, on every level that has its own."""

    kernel_size: ClassVar[int] = 3
    """Of the projector's first convolution."""
    head_class: ClassVar[type[nn.Module] | None] = None
    """What the head becomes where the stock class cannot learn from embeddings; None leaves it."""
    defaults: ClassVar[dict[str, Any]] = {
        "optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}
    }
    dropped_losses = frozenset({"loss_cls"})

    def convert(self, detector: nn.Module, embed_dims: int) -> None:
        """See FamilyAdapter."""
        head: Any = detector.bbox_head
        head.loss_cls = EmbeddingTap()
        self.replace_predictor(head, lambda stock, anchors: self.projector(stock, embed_dims, anchors))
        head.cls_out_channels = embed_dims
        head.num_classes = BACKGROUND
        if self.head_class is not None:
            head.__class__ = self.head_class

    def taps(self, detector: nn.Module) -> list[EmbeddingTap]:
        """See FamilyAdapter."""
        head: Any = detector.bbox_head
        return [head.loss_cls]

    def projector(self, stock: nn.Module, embed_dims: int, anchors: int) -> nn.Module:
        """f_con and g on what the ``stock`` predictor took (the input of its first convolution)."""
        first: Any = next(module for module in stock.modules() if isinstance(module, nn.Conv2d))
        return conv_projector(first.in_channels, embed_dims, self.kernel_size, anchors)

    def replace_predictor(self, head: Any, make: Callable[[nn.Module, int], nn.Module]) -> None:
        """Put ``make(stock predictor, anchors per cell)`` in the predictor's place, level by level."""
        name = self.embedding_layers[0].removeprefix("bbox_head.").removesuffix(".")
        stock = getattr(head, name)
        generator = getattr(head, "prior_generator", None)
        anchors = list(getattr(generator, "num_base_priors", None) or [1])
        if isinstance(stock, nn.ModuleList):
            levels = zip(stock, anchors * (len(stock) // len(anchors)), strict=True)
            setattr(head, name, nn.ModuleList(make(level, number) for level, number in levels))
        else:
            setattr(head, name, make(stock, anchors[0]))


class AttachedBoxLoss:
    """Before a stock head whose box loss without boxes is a constant: DDP waits for parameters outside the graph."""

    def loss_by_feat(
        self, cls_scores: Any, bbox_preds: list[Tensor], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """As the stock head's; zero, from every box prediction, is added to ``loss_bbox``."""
        losses: dict[str, Any] = super().loss_by_feat(cls_scores, bbox_preds, *args, **kwargs)  # type: ignore[misc]
        losses["loss_bbox"] = losses["loss_bbox"] + sum(level[:0].sum() for level in bbox_preds)
        return losses
