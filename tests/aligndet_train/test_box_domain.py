"""A training step of every family: what moves, what stays, and whose ids the losses see."""

import copy
import dataclasses
import importlib

import pytest
import torch

from aligndet_train.box_domain import build_detector, build_pretrainer
from aligndet_train.compiling import require_compiler
from aligndet_train.config import load_run_config
from aligndet_train.detectors import BACKGROUND, adapter_for
from aligndet_train.diagnostics import embedding_diagnostics
from aligndet_train.losses.contrastive import box_contrastive_loss
from proposals.errors import AlignDetError
from tests.aligndet_train.conftest import TINY
from tests.aligndet_train.test_contrastive import literal_loss


def losses_of(model, batch):
    return model(**model.data_preprocessor(batch, True), mode="loss")


def trained(model, batch, steps, lr=0.02):
    """Loss of each of ``steps`` steps on one fixed batch."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9)
    values = []
    for step in range(steps):
        torch.manual_seed(step)
        total, _ = model.parse_losses(losses_of(model, batch))
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        model.momentum_step(0.99)
        values.append(total.item())
    return values


def test_only_neck_and_heads_learn_and_the_loss_falls(pretrainer, samples):
    before = copy.deepcopy(pretrainer.state_dict())
    values = trained(pretrainer, samples(0, 1), steps=40)
    after = pretrainer.state_dict()
    unchanged = {name for name in after if torch.equal(before[name], after[name])}
    backbone = {name for name in after if name.startswith("student.backbone.")}
    trainable = {f"student.{name}" for name, p in pretrainer.student.named_parameters() if p.requires_grad}
    assert backbone <= unchanged, "a backbone parameter or running statistic changed"
    assert not trainable & unchanged, "a trainable parameter did not change"
    assert not trainable & backbone
    assert sum(values[-5:]) < 0.97 * sum(values[:5])


def test_a_backbones_statistics_stay_even_where_its_config_would_train_them(samples):
    run = load_run_config(TINY["fcos"], {}, {"model.backbone.norm_eval": False})
    model = build_pretrainer(run.stock_model, run.pretrain).train()
    assert not any(module.training for module in model.student.backbone.modules())
    assert model.student.neck.training
    assert model.student.bbox_head.training
    before = copy.deepcopy(dict(model.student.backbone.named_buffers()))
    losses_of(model, samples(0))
    after = dict(model.student.backbone.named_buffers())
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("setting", "scaled"),
    [
        ("contrastive_weight", {"loss_contrastive"}),
        ("regression_weight", {"loss_bbox", "loss_centerness", "loss_rpn_bbox", "loss_rpn_cls"}),
    ],
)
def test_a_losss_weight_multiplies_it_and_no_other(pretrainer, samples, setting, scaled):
    batch, figures = samples(0, 1), []
    for weight in (1.0, 3.0):
        pretrainer.config = dataclasses.replace(pretrainer.config, **{setting: weight})
        torch.manual_seed(0)
        figures.append(pretrainer.parse_losses(losses_of(pretrainer, batch))[1])
    plain, weighted = figures
    assert sum(plain[name] > 0 for name in scaled & set(plain)) == len(scaled & set(plain)) > 0
    for name in set(plain) - {"loss"}:
        factor = 3 if name in scaled else 1
        assert weighted[name].item() == pytest.approx(factor * plain[name].item(), rel=1e-5), name


def test_a_roi_head_embeds_every_proposal_and_no_background(samples):
    run = load_run_config(TINY["faster_rcnn"], {}, {})
    model = build_pretrainer(run.stock_model, run.pretrain).train()
    inputs, targets = model.data_preprocessor(samples(0, 1), True)["views"][0]
    model.student.loss(inputs, targets)
    (reading,) = model.adapter.read(model.student)
    proposals = torch.cat([target.gt_instances.labels for target in targets])
    # Equal, as the proposals are boxes themselves: an untrained RPN finds few of them.
    assert set(reading.ids.tolist()) == set(proposals.tolist())


def test_images_without_boxes_are_legal(pretrainer, samples):
    empty = [dataclasses.replace(s, boxes=s.boxes[:0]) for s in samples(0, 1)]
    _, usual = pretrainer.parse_losses(losses_of(pretrainer, samples(0, 1)))
    for batch in (empty, [empty[0], *samples(2)], empty[:1]):
        total, figures = pretrainer.parse_losses(losses_of(pretrainer, batch))
        total.backward()
        assert torch.isfinite(total)
        assert set(figures) == set(usual), "ranks average their figures one by one: all must have the same"


def test_a_rank_whose_images_have_no_boxes_does_not_stop_the_others(pretrainer, samples, tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(pretrainer)
        full = samples(0, 1)
        empty = [dataclasses.replace(s, boxes=s.boxes[:0]) for s in full]
        for batch in (full, empty, full):
            losses = wrapped(**pretrainer.data_preprocessor(batch, True))
            assert (losses["loss_contrastive"] > 0) == (batch is full)
            pretrainer.parse_losses(losses)[0].backward()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("first_id", [256, 5000])
def test_any_id_is_a_proposal(pretrainer, samples, first_id):
    data = pretrainer.data_preprocessor(samples(0, 1), True)
    plain = pretrainer(**copy.deepcopy(data))
    for _, targets in data["views"]:
        for target in targets:
            target.gt_instances.labels += first_id
    shifted = pretrainer(**data)
    assert shifted["positives"] == plain["positives"] > 0
    for name in ("loss_bbox", "loss_contrastive"):
        assert shifted[name].item() == pytest.approx(plain[name].item(), rel=0.2)
        assert shifted[name] > 0


def test_loss_equals_the_literal_loop_on_what_the_detector_assigned(pretrainer, samples):
    data = pretrainer.data_preprocessor(samples(0, 3), True)
    seen = []
    original = pretrainer._sample
    pretrainer._sample = lambda *views: seen.extend(original(*views)) or seen[-2:]
    loss = pretrainer(**data)["loss_contrastive"]
    query, key = seen
    labels = [torch.where(r.ids == BACKGROUND, -1, r.ids) for r in (query, key)]
    expected = literal_loss(query.embeddings, key.embeddings, *labels, pretrainer.config.temperature)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert loss.item() == pytest.approx(
        box_contrastive_loss(
            query.embeddings.double(), key.embeddings.double(), *labels, background=-1, temperature=0.5
        ).item(),
        abs=1e-5,
    )


def test_ids_are_assigned_by_the_stock_assigner(samples):
    """FCOS: with ids in place of classes, its own target function must give every point the same box."""
    run = load_run_config(TINY["fcos"], {}, {})
    model = build_pretrainer(run.stock_model, run.pretrain)
    stock = build_detector(run.stock_model)
    (inputs, targets), _ = model.data_preprocessor(samples(0, 1), True)["views"]
    grids = [(-(-inputs.shape[2] // s), -(-inputs.shape[3] // s)) for s in (8, 16, 32, 64, 128)]
    points = stock.bbox_head.prior_generator.grid_priors(grids, device="cpu")
    instances = [t.gt_instances for t in targets]
    labels, boxes = model.student.bbox_head.get_targets(points, instances)
    stock_labels, stock_boxes = stock.bbox_head.get_targets(points, instances)
    foreground = torch.cat(labels) != BACKGROUND
    assert foreground.any()
    assert torch.equal(torch.cat(labels)[foreground], torch.cat(stock_labels)[foreground])
    assert torch.equal(torch.cat(boxes)[foreground], torch.cat(stock_boxes)[foreground])


@pytest.mark.parametrize(
    "setting",
    [
        "channels_last",
        *(pytest.param(s, marks=pytest.mark.slow) for s in ("compile_backbone", "compile_loss")),
    ],
)
def test_settings_for_speed_do_not_change_the_losses(setting, samples):
    run = load_run_config(TINY["fcos"], {}, {})
    plain, fast = (
        build_pretrainer(run.stock_model, dataclasses.replace(run.pretrain, **{setting: value}))
        for value in (False, True)
    )
    figures = []
    for model in (plain, fast):
        model.train()
        data = model.data_preprocessor(samples(0, 3), True)
        torch.manual_seed(0)
        losses = model(**data)
        sum(losses[name].sum() for name in ("loss_bbox", "loss_contrastive")).backward()
        gradients = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        figures.append(torch.stack([losses["loss_bbox"], losses["loss_contrastive"], *gradients]))
    assert fast.student.neck.lateral_convs[0].conv.weight.is_contiguous(
        memory_format=torch.channels_last if setting == "channels_last" else torch.contiguous_format
    )
    torch.testing.assert_close(*figures, rtol=1e-3, atol=1e-5)


def test_every_shape_of_a_canvas_may_be_compiled(monkeypatch):
    """torch's own limit is eight forms; two passes a step, with and without gradients, fill it with four shapes."""
    run = load_run_config(TINY["fcos"], {"compile_backbone": True, "canvas_multiple": 128}, {})
    monkeypatch.setattr(
        "aligndet_train.box_domain.require_compiler", lambda setting: None
    )  # nothing is compiled
    limits = importlib.import_module("torch._dynamo.config")
    monkeypatch.setattr(limits, "cache_size_limit", 8)
    build_pretrainer(run.stock_model, run.pretrain)
    assert limits.cache_size_limit >= 2 * 36


@pytest.mark.parametrize("setting", ["compile_backbone", "compile_loss"])
def test_compiling_without_a_compiler_is_refused_before_training(setting, monkeypatch, tmp_path):
    run = load_run_config(TINY["fcos"], {setting: True}, {})
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        AlignDetError, match=rf"pretrain\.{setting}=True compiles code.*no g\+\+.*apt install"
    ):
        build_pretrainer(run.stock_model, run.pretrain)


@pytest.mark.parametrize(
    ("on_gpu", "environment", "refused"),
    [
        (False, {"CXX": "own -m64"}, None),
        (False, {"CXX": "gone"}, "no gone"),
        (False, {"TORCH_INDUCTOR_INSTALL_GXX": "1"}, None),
        (True, {"CC": "own"}, None),
        (True, {"CC": "own -m64"}, "no own -m64"),  # Triton takes it for a path
        (True, {"CC": ""}, "name another one in CC"),
        (True, {}, "no gcc or clang"),
    ],
)
def test_the_compiler_is_looked_for_where_torch_does(on_gpu, environment, refused, monkeypatch, tmp_path):
    (tmp_path / "own").write_text("#!/bin/sh")
    (tmp_path / "own").chmod(0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    for variable in ("CC", "CXX", "TORCH_INDUCTOR_INSTALL_GXX"):
        monkeypatch.delenv(variable, raising=False)
    for name, value in {"PATH": str(tmp_path), **environment}.items():
        monkeypatch.setenv(name, value)
    if refused is None:
        require_compiler("pretrain.compile_loss")
        (tmp_path / "Python.h").unlink()
    if refused or on_gpu:
        with pytest.raises(AlignDetError, match=refused or "apt install python3-dev"):
            require_compiler("pretrain.compile_loss")


def test_sampled_boxes_are_of_the_same_proposals_in_both_views(pretrainer, samples):
    pretrainer.config = dataclasses.replace(pretrainer.config, sampled_boxes=40, background_share=0.5)
    seen, original = [], pretrainer._sample
    pretrainer._sample = lambda *views: seen.extend(original(*views)) or seen[-2:]
    losses = losses_of(pretrainer, samples(0, 1))
    for kept in seen:
        assert len(kept.ids) == len(kept.embeddings) == 40
    query, key = (kept.ids[kept.ids != BACKGROUND] for kept in seen)
    assert len(set(query.tolist()) & set(key.tolist())) >= 10
    assert losses["with_key"] == pytest.approx(torch.isin(query, key).float().mean().item())


def test_images_are_contrasted_in_the_groups_that_are_asked_for(pretrainer, samples):
    seen, original = [], pretrainer._sample
    pretrainer._sample = lambda *views: seen.extend(original(*views)) or seen[-2:]
    batch = samples(0, 1, 2)
    firsts = [0, len(batch[0].boxes), len(batch[0].boxes) + len(batch[1].boxes)]
    for images in (1, 2, 5):
        pretrainer.config = dataclasses.replace(pretrainer.config, contrast_images=images)
        losses = losses_of(pretrainer, batch)
        rows = [kept.ids != BACKGROUND for kept in seen[-2:]]
        embeddings = [kept.embeddings[foreground] for kept, foreground in zip(seen[-2:], rows, strict=True)]
        ids = [kept.ids[foreground] for kept, foreground in zip(seen[-2:], rows, strict=True)]
        found = ids_with_groups = 0
        for group in range(0, 3, images):
            last = firsts[group + images] if group + images < 3 else BACKGROUND
            own = [(view >= firsts[group]) & (view < last) for view in ids]
            figures = embedding_diagnostics(
                *(rows[mask] for rows, mask in zip(embeddings, own, strict=True)),
                *(view[mask] for view, mask in zip(ids, own, strict=True)),
                background=BACKGROUND,
            )
            with_key = torch.isin(ids[0][own[0]], ids[1][own[1]]).sum()
            found, ids_with_groups = found + figures["retrieval"] * with_key, ids_with_groups + with_key
        if all(foreground.all() for foreground in rows):  # background is dealt out otherwise
            assert losses["retrieval"] == pytest.approx((found / ids_with_groups).item())
        assert losses["retrieval"] <= (found / ids_with_groups).item() + 1e-6


def test_a_groups_negatives_are_its_images_boxes_and_its_share_of_the_background(samples):
    run = load_run_config(TINY["fcos"], {"contrast_images": 1}, {})
    model = build_pretrainer(run.stock_model, run.pretrain).train()
    seen, original = [], model._sample
    model._sample = lambda *views: seen.extend(original(*views)) or seen[-2:]
    batch = samples(0, 1, 2)
    loss = losses_of(model, batch)["loss_contrastive"]
    assert all((view.ids == BACKGROUND).sum() > 3 for view in seen)
    total = ids_with_queries = 0
    first = 0
    for image, sample in enumerate(batch):
        mine = [
            ((view.ids >= first) & (view.ids < first + len(sample.boxes)))
            | ((view.ids == BACKGROUND) & (torch.arange(len(view.ids)) % len(batch) == image))
            for view in seen
        ]
        first += len(sample.boxes)
        query, key = (view.take(rows.nonzero()[:, 0]) for view, rows in zip(seen, mine, strict=True))
        labels = [torch.where(view.ids == BACKGROUND, -1, view.ids) for view in (query, key)]
        count = len(set(labels[0].tolist()) - {-1})
        total = total + count * literal_loss(query.embeddings, key.embeddings, *labels, 0.5)
        ids_with_queries += count
    assert loss.item() == pytest.approx((total / ids_with_queries).item(), abs=1e-5)


def test_without_the_head_names_and_shapes_are_the_stock_ones(run):
    model = build_pretrainer(run.stock_model, run.pretrain)
    stock = {name: value.shape for name, value in build_detector(run.stock_model).state_dict().items()}
    adapter = model.adapter
    particular = adapter.embedding_layers + adapter.predictors
    rest = {n: v.shape for n, v in model.student.state_dict().items() if not n.startswith(particular)}
    assert rest == {n: shape for n, shape in stock.items() if not n.startswith(particular)}


def test_unsupported_head_names_itself_and_what_is_missing():
    with pytest.raises(AlignDetError, match=r"TheirHead of FCOS.*FCOSHead.*which losses stay"):
        adapter_for("FCOS", "TheirHead")
    with pytest.raises(
        AlignDetError, match=r"YOLOV3 with YOLOV3Head cannot be pretrained: one layer predicts box"
    ):
        adapter_for("YOLOV3", "YOLOV3Head")


def test_same_seed_same_weights(run):
    first, second = (build_pretrainer(run.stock_model, run.pretrain).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
