"""The box-domain stage: a stock detector, its teacher, and the two losses (AlignDet section 3.2).

    L = lambda_con L_con + lambda_reg L_reg

L_reg are the detector's own box losses on view 1, with the proposals as ground truth; L_con compares the embeddings
of boxes that the detector's own assigner gave the same proposal in the two views.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.dist import get_world_size
from torch import Tensor, nn

from aligndet_train.building import mmdets_scope
from aligndet_train.compiling import compile_backbone, require_compiler
from aligndet_train.config import PretrainConfig, head_type
from aligndet_train.detectors import BACKGROUND, adapter_for
from aligndet_train.detectors.adapter import FamilyAdapter, Reading
from aligndet_train.detectors.float32 import keep_sensitive_float32
from aligndet_train.diagnostics import contrastive_floor, embedding_diagnostics
from aligndet_train.distributed import mean_over_ranks, rows_of_other_ranks
from aligndet_train.equals import put_equals_in_place
from aligndet_train.initial_weights import load_initial_weights
from aligndet_train.losses.contrastive import OtherRanks, box_contrastive_loss, ids_with_a_query
from aligndet_train.memory_order import order_weights
from aligndet_train.momentum import make_teacher, update_teacher
from aligndet_train.preprocess import FIRST_ID, InputSpec, TwoViewPreprocessor
from aligndet_train.pretraining_model import Losses, PretrainingModel, require_losses
from aligndet_train.rank_counts import normalised_by_all_ranks, roi_box_losses
from aligndet_train.sampling import sample_both_views
from proposals.errors import AlignDetError

Stages = list[Reading | None]


class BoxDomainPretrainer(PretrainingModel):
    """Student f_q and momentum teacher f_k over one frozen backbone.

    student: a detector as mmdet builds it from a stock config; converted in place by ``adapter``. remarks: what the log
    should say of the weights that it begins with.
    """

    # mmdet detectors: their methods are their own, unknown to nn.Module's type.
    student: Any
    teacher: Any

    def __init__(
        self,
        student: nn.Module,
        adapter: FamilyAdapter,
        preprocessor: TwoViewPreprocessor,
        config: PretrainConfig,
        remarks: Sequence[str] = (),
    ) -> None:
        super().__init__(data_preprocessor=preprocessor)
        self.config = config
        self.adapter = adapter
        self.remarks = tuple(remarks)
        adapter.convert(student, config.embed_dims)
        put_equals_in_place(student)
        keep_sensitive_float32(student)
        self.student = student
        self.student.backbone.requires_grad_(False)
        for name, parameter in self.student.named_parameters():
            if name.startswith(adapter.untrained):
                parameter.requires_grad_(False)
        self._roi_losses = roi_box_losses(student)
        self.teacher = make_teacher(student)

    def init_weights(self) -> None:
        """Nothing: the student came initialised, and the teacher must stay its copy."""

    def train(self, mode: bool = True) -> "BoxDomainPretrainer":
        """Train mode for everything but the backbone, whose normalisation statistics are frozen too."""
        super().train(mode)
        self.student.backbone.eval()
        return self

    def forward(self, views: tuple[Any, Any], mode: str = "loss") -> Losses:
        """Losses and diagnostics of one batch of two views (see TwoViewPreprocessor).

        Only ``mode="loss"`` exists: a pretraining model predicts nothing.
        """
        require_losses(mode)
        (inputs, targets), (other_inputs, other_targets) = views
        stock = self.student.loss(inputs, self.adapter.targets(targets))
        queries = self.adapter.read(self.student)
        losses = self._regression_losses(self._over_all_ranks(stock, queries))
        with torch.no_grad():
            self.teacher.loss(other_inputs, self.adapter.targets(other_targets))
            keys = self.adapter.read(self.teacher)
        firsts = [target.metainfo[FIRST_ID] for target in targets]
        return losses | self._contrast(queries, keys, firsts)

    def momentum_step(self, momentum: float) -> None:
        """Let the teacher follow the student; call it after every optimiser step."""
        update_teacher(self.teacher, self.student, momentum)

    def _regression_losses(self, stock: Losses) -> Losses:
        kept = {name: value for name, value in stock.items() if self.adapter.keeps(name)}
        return {name: _scaled(value, self.config.regression_weight) for name, value in kept.items()}

    def _contrast(self, queries: Stages, keys: Stages, firsts: list[int]) -> dict[str, Tensor]:
        """The stages' contrastive losses, each with its weight; figures are the last stage's.

        firsts: of every image of the batch the least id.
        """
        losses, figures = [], self._no_figures()
        for query, key in zip(queries, keys, strict=True):
            query, key = self._sample(query, key)
            others = self._other_ranks(query, key) if self.config.gather_negatives else None
            if query is None or key is None:
                losses.append(self._nothing_to_contrast())
                continue
            views = (query.embeddings, key.embeddings, query.ids, key.ids)
            groups = self._groups(query.ids, key.ids, firsts)
            loss = box_contrastive_loss(
                *views,
                background=BACKGROUND,
                temperature=self.config.temperature,
                others=others,
                groups=groups,
                compiled=self.config.compile_loss,
            )
            losses.append(loss * query.weight)
            floor = contrastive_floor(
                query.ids,
                key.ids,
                background=BACKGROUND,
                temperature=self.config.temperature,
                more_negatives=None if others is None else others.real.sum(),
                groups=groups,
            )
            figures = embedding_diagnostics(*views, background=BACKGROUND, groups=groups)
            figures["above_floor"] = loss.detach() - floor
        return {"loss_contrastive": torch.stack(losses).sum() * self.config.contrastive_weight, **figures}

    def _groups(self, query_ids: Tensor, key_ids: Tensor, firsts: list[int]) -> tuple[Tensor, Tensor] | None:
        """[Q], [K]: of each box, the number of the ``contrast_images`` images that it is in."""
        if self.config.contrast_images is None:
            return None
        starts = torch.tensor(firsts[:: self.config.contrast_images][1:], dtype=torch.long)
        starts = starts.to(query_ids.device, non_blocking=True)
        query, key = (
            torch.where(
                ids == BACKGROUND,
                torch.arange(len(ids), device=ids.device) % (len(starts) + 1),
                torch.bucketize(ids, starts, right=True),
            )
            for ids in (query_ids, key_ids)
        )
        return query, key

    def _no_figures(self) -> dict[str, Tensor]:
        """Zeros under every name: ranks average their figures, so each must have the same ones."""
        rows = torch.zeros(0, self.config.embed_dims, device=self.data_preprocessor.mean.device)
        ids = rows.new_zeros(0, dtype=torch.long)
        figures = embedding_diagnostics(rows, rows, ids, ids, background=BACKGROUND)
        return figures | {"above_floor": rows.new_zeros(())}

    def _over_all_ranks(self, stock: Losses, queries: Stages) -> Losses:
        if get_world_size() == 1:
            return stock
        counts = [0 if reading is None else len(reading.ids) for reading in queries]
        return normalised_by_all_ranks(stock, self._roi_losses, counts, self.data_preprocessor.mean.device)

    def _other_ranks(self, query: Reading | None, key: Reading | None) -> OtherRanks | None:
        """Every rank comes here for every stage, also with nothing to tell."""
        if get_world_size() == 1:
            return None
        device = self.data_preprocessor.mean.device
        rows = [view.embeddings.float() for view in (query, key) if view is not None]
        own = torch.cat([torch.zeros((0, self.config.embed_dims), device=device), *rows])
        limit = self.config.sampled_boxes
        embeddings, real = rows_of_other_ranks(own, None if limit is None else 2 * limit)
        ids = torch.zeros(0, device=device) if query is None else query.ids
        count = mean_over_ranks(ids_with_a_query(ids, BACKGROUND)).clamp(min=1 / get_world_size())
        return OtherRanks(embeddings, real, count)

    def _nothing_to_contrast(self) -> Tensor:
        """Zero, attached to every trainable parameter: DDP waits for those that take no part in a loss."""
        trainable = (p for p in self.student.parameters() if p.requires_grad)
        return torch.stack([p.reshape(-1)[:0].sum() for p in trainable]).sum()

    def _sample(self, query: Reading | None, key: Reading | None) -> tuple[Reading | None, Reading | None]:
        """At most ``sampled_boxes`` of each view, of the same proposals."""
        limit = self.config.sampled_boxes
        if query is None or key is None:
            return None, None  # nothing is contrasted then, here or on other ranks
        if limit is None or max(len(query.ids), len(key.ids)) <= limit:
            return query, key
        rows = sample_both_views(
            query.ids, key.ids, limit, background=BACKGROUND, background_share=self.config.background_share
        )
        return query.take(rows[0]), key.take(rows[1])


def build_detector(stock_model: dict[str, Any]) -> nn.Module:
    """The stock mmdet detector of a ``model`` config; weights as constructed, nothing is downloaded.

    Raises AlignDetError when a class it names is not registered, or does not take its settings.
    """
    with mmdets_scope():
        try:
            detector: nn.Module = MODELS.build(ConfigDict(stock_model))
        except KeyError as error:
            if "is not in the" not in str(error):
                raise
            raise AlignDetError(
                f"{error.args[0].split('.')[0]}: import the module that defines it first (`custom_imports` in a "
                "config, --import-module for export)"
            ) from error
        except (TypeError, ValueError, AttributeError, AssertionError, RuntimeError, LookupError) as error:
            raise AlignDetError(
                f"the detector {stock_model.get('type')} cannot be built from its config: "
                f"{error or type(error).__name__}. Correct it, or the --cfg-options"
            ) from error
    return detector


def build_pretrainer(
    stock_model: dict[str, Any], config: PretrainConfig, *, initialise: bool = True
) -> BoxDomainPretrainer:
    """Build the stock detector, initialise its weights (unless a checkpoint is to be loaded) and convert it.

    Seeds torch with ``config.seed`` first, so the same config gives the same initial weights. Raises AlignDetError when
    the weights that the config names do not fill the backbone, and when it asks for compiled parts and there is no
    compiler.
    """
    for setting in ("compile_backbone", "compile_loss"):
        if getattr(config, setting):
            require_compiler(f"pretrain.{setting}")
    adapter = adapter_for(stock_model["type"], head_type(stock_model))
    torch.manual_seed(config.seed)
    student: Any = build_detector(adapter.pretraining_model(stock_model, config))
    remarks = load_initial_weights(student, student.backbone) if initialise else []
    preprocessor = TwoViewPreprocessor(
        InputSpec.from_stock(stock_model.get("data_preprocessor") or {}),
        config.views,
        config.seed,
        config.canvas_multiple,
    )
    model = BoxDomainPretrainer(student, adapter, preprocessor, config, remarks)
    if config.channels_last:
        order_weights(model)
    if config.compile_backbone:
        compile_backbone(model.student.backbone)
    return model


def _scaled(value: Any, weight: float) -> Any:
    return [item * weight for item in value] if isinstance(value, list) else value * weight
