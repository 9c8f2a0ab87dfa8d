"""Query detectors: what their tap reads, against the stock detector's own matching and the literal loss."""

import copy
import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch.nn.functional import cross_entropy

from aligndet_train.box_domain import build_detector, build_pretrainer
from aligndet_train.config import load_run_config
from aligndet_train.detectors import BACKGROUND
from aligndet_train.export import exported_state, key_report
from aligndet_train.run_options import RunOptions
from aligndet_train.training import pretrain
from proposals.dataset import open_dataset
from proposals.dataset.clusters import ClusterRecord, Clusters, boxes_fingerprint, write_clusters
from proposals.errors import AlignDetError
from tests.aligndet_train.detectors_zoo import tiny_run
from tests.aligndet_train.test_contrastive import literal_loss

CONFIGS = Path(__file__).parents[1] / "configs"
FAMILIES = ("detr", "conditional_detr", "dab_detr", "deformable_detr", "dino", "ddq")
CLASSES = 5


def tiny(name):
    return load_run_config(CONFIGS / f"tiny_{name}.py", {"classes": CLASSES}, {})


def quiet(model):
    """No dropout: the same inputs give the same outputs."""
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def built(family):
    run = tiny(family)
    model = quiet(build_pretrainer(run.stock_model, run.pretrain))
    model.train()
    return run, model


@pytest.fixture
def model(built):
    """The family's pretraining model, untrained."""
    return built[1]


@pytest.fixture
def batch(samples):
    """Two photographs, eight proposals each, of five clusters."""
    two = samples(0, 3)
    return [
        dataclasses.replace(s, boxes=s.boxes[:8], clusters=torch.arange(8)[: len(s.boxes)] % CLASSES)
        for s in two
    ]


def losses_of(model, batch):
    torch.manual_seed(0)
    return model(**model.data_preprocessor(batch, True))


def stock_reading(detector, projector, inputs, targets):
    """Embeddings, ids and class logits of every layer's matching queries, by the stock detector's own functions."""
    head = detector.bbox_head
    proposals = [t.gt_instances for t in targets]
    for gt in proposals:
        gt.ids, gt.labels = gt.labels, gt.clusters
    given = detector.forward_transformer(detector.extract_feat(inputs), targets)
    references = {"references": given["references"]} if "references" in given else {}
    scores, boxes = head(given["hidden_states"], **references)
    first = (given.get("dn_meta") or {}).get("num_denoising_queries", 0)
    embeddings, ids, logits = [], [], []
    for layer, (layer_scores, layer_boxes) in enumerate(zip(scores, boxes, strict=True)):
        for image, gt in enumerate(proposals):
            rows = torch.arange(first, first + detector.num_queries)
            if layer and hasattr(detector, "dqs_cfg"):
                mask = detector.cache_dict["distinct_query_mask"][layer - 1]
                rows = rows[mask[image * detector.cache_dict["num_heads"]][0]]
            args = layer_scores[image][rows], layer_boxes[image][rows], gt, targets[image].metainfo
            found = head._get_targets_single(*args)
            width_height = gt.bboxes.new_tensor(targets[image].img_shape[::-1] * 2)
            matched = bbox_cxcywh_to_xyxy(found[2][found[4]]) * width_height
            here = torch.full((len(rows),), -1)
            here[found[4]] = gt.ids[torch.cdist(matched, gt.bboxes).argmin(dim=1)]
            embeddings.append(projector(given["hidden_states"][layer, image][rows]))
            ids.append(here)
            logits.append(layer_scores[image][rows])
    return torch.cat(embeddings), torch.cat(ids), logits


def stock_detector(built):
    """The stock detector with the pretraining model's weights and number of classes."""
    run, model = built
    detector = quiet(build_detector(model.adapter.pretraining_model(run.stock_model, run.pretrain)))
    tap = model.adapter.embedding_layers
    weights = {n: v for n, v in model.student.state_dict().items() if not n.startswith(tap)}
    detector.load_state_dict(weights)
    return detector.train(), model.student.bbox_head.query_tap.projector


def test_loss_is_the_literal_loop_over_what_the_stock_detector_matches(built, batch):
    detector, projector = stock_detector(built)
    detector.backbone.eval()
    loss = losses_of(built[1], batch)["loss_contrastive"]
    torch.manual_seed(0)
    views = built[1].data_preprocessor(batch, True)["views"]
    # The teacher starts as the student's copy: one stock detector stands for both.
    (query, query_ids, _), (key, key_ids, _) = (stock_reading(detector, projector, *view) for view in views)
    assert (query_ids >= 0).sum() >= 16
    expected = literal_loss(query, key, query_ids, key_ids, built[1].config.temperature)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_distinct_queries_of_ddq_are_each_images_own(batch):
    options = {"model.dqs_cfg.iou_threshold": 0.4}
    run = load_run_config(CONFIGS / "tiny_ddq.py", {"classes": CLASSES}, options)
    built = run, quiet(build_pretrainer(run.stock_model, run.pretrain)).train()
    # Untrained, the decoder leaves its queries' boxes as they were chosen, distinct: these grow into each other.
    with torch.no_grad():
        built[1].student.bbox_head.reg_branches[0][-1].bias.copy_(torch.tensor([0.0, 0.0, 3.0, 3.0]))
    inputs, targets = built[1].data_preprocessor(batch, True)["views"][0]
    student = built[1].student
    with torch.no_grad():
        torch.manual_seed(0)
        student.loss(inputs, built[1].adapter.targets(copy.deepcopy(targets)))
        (found,) = built[1].adapter.read(student)
        detector, projector = stock_detector(built)
        detector.backbone.eval()
        torch.manual_seed(0)
        embeddings, ids, logits = stock_reading(detector, projector, inputs, targets)
    assert max(len(rows) for rows in logits[2:]) < 20
    assert torch.allclose(found.embeddings, embeddings, atol=1e-5)
    assert torch.equal(found.ids, torch.where(ids < 0, BACKGROUND, ids))


@pytest.mark.parametrize("first_id", [256, 5000])
def test_any_id_is_a_proposal(model, batch, first_id):
    plain = losses_of(model, batch)
    data = model.data_preprocessor(batch, True)
    for _, targets in data["views"]:
        for target in targets:
            target.gt_instances.labels += first_id
    torch.manual_seed(0)
    shifted = model(**data)
    assert shifted["positives"] == plain["positives"] > 0
    # Denoising queries are drawn at random, but no matching query sees them.
    for name in ("loss_cls", "loss_bbox", "loss_contrastive"):
        assert shifted[name].item() == pytest.approx(plain[name].item(), abs=1e-5)


def test_images_without_boxes_and_batches_of_one_are_legal(model, batch):
    empty = [dataclasses.replace(s, boxes=s.boxes[:0], clusters=s.clusters[:0]) for s in batch]
    for images in (empty, [empty[0], batch[1]], batch[:1], empty[:1]):
        losses = losses_of(model, images)
        total, _ = model.parse_losses(losses)
        total.backward()
        assert torch.isfinite(total)
        assert (losses["loss_contrastive"] > 0) == any(len(s.boxes) for s in images)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_view_may_lose_every_proposal(model, batch, lost):
    data = model.data_preprocessor(batch, True)
    for target in data["views"][lost][1]:
        target.gt_instances = target.gt_instances[:0]
    losses = model(**data)
    total, _ = model.parse_losses(losses)
    assert torch.isfinite(total)
    # Without a partner a query has itself for positive; without queries there is nothing to learn.
    assert (losses["loss_contrastive"] > 0) == (lost == 1)


def test_every_trainable_weight_learns_and_stock_names_and_shapes_remain(built, batch):
    run, model = built
    model.zero_grad()
    model.parse_losses(losses_of(model, batch))[0].backward()
    trainable = {name: p for name, p in model.student.named_parameters() if p.requires_grad}
    assert [name for name, p in trainable.items() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    particular = model.adapter.embedding_layers + model.adapter.cluster_layers
    student, stock = (
        {name: value.shape for name, value in detector.state_dict().items()}
        for detector in (model.student, build_detector(run.stock_model))
    )
    assert {n for n in student if not n.startswith(model.adapter.embedding_layers)} == set(stock)
    assert {n for n in stock if stock[n] != student[n]} <= {n for n in stock if n.startswith(particular)}


@pytest.mark.parametrize("keep", [False, True])
def test_exported_weights_fit_the_stock_config_but_for_what_knows_classes(built, batch, keep):
    run, model = built
    losses_of(model, batch)
    checkpoint = {"identity": {"stock_model": run.stock_model}, "model": model.state_dict()}
    report = key_report(*exported_state(checkpoint, keep_predictors=keep))
    assert report.unexpected == ()
    classes = ("fc_cls", "cls_branches", "label_embedding")
    others = [name for name in report.left_at_init if not any(part in name for part in classes)]
    # Without --keep-predictors the last layer of the box branches is left, too.
    assert bool(others) != keep
    assert all(name.split(".")[1] in ("fc_reg", "reg_branches", "aux_reg_branches") for name in others)
    assert any(name.startswith("decoder.") for name in report.loaded)


def test_what_predicts_clusters_is_not_exported_though_there_be_as_many_as_classes(batch):
    run = load_run_config(CONFIGS / "tiny_detr.py", {"classes": 7}, {"model.bbox_head.num_classes": 7})
    stock = build_detector(run.stock_model).state_dict()
    model = build_pretrainer(run.stock_model, run.pretrain)
    assert stock["bbox_head.fc_cls.weight"].shape == model.student.bbox_head.fc_cls.weight.shape
    checkpoint = {"identity": {"stock_model": run.stock_model}, "model": model.state_dict()}
    exported, _ = exported_state(checkpoint, keep_predictors=True)
    assert "bbox_head.fc_cls.weight" not in exported
    assert "bbox_head.fc_reg.weight" in exported


def test_as_many_proposals_as_queries_are_refused(built):
    run, _ = built
    for proposals in (20, None):
        config = dataclasses.replace(run.pretrain, proposals_per_image=proposals)
        with pytest.raises(AlignDetError, match=r"20 queries.*proposals_per_image=10"):
            build_pretrainer(run.stock_model, config)


@pytest.mark.parametrize("family", ["sparse_rcnn", "queryinst"])
def test_as_many_proposals_as_learned_boxes_are_refused(family):
    run = tiny_run(family)
    for proposals in (20, None):
        config = dataclasses.replace(run.pretrain, proposals_per_image=proposals)
        with pytest.raises(AlignDetError, match=r"20 learned boxes.*proposals_per_image=10"):
            build_pretrainer(run.stock_model, config)


def test_bfloat16_keeps_coordinates_in_float32(built, batch):
    model = built[1]
    (inputs, targets), _ = model.data_preprocessor(batch, True)["views"]
    seen, hooks = [], []
    for module in model.student.modules():
        if isinstance(module, MultiScaleDeformableAttention):
            hooks.append(
                module.sampling_offsets.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
            )
    hooks.append(model.student.bbox_head.register_forward_hook(lambda m, i, out: seen.append(out[1].dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.student.loss(inputs, model.adapter.targets(targets))
    for hook in hooks:
        hook.remove()
    model.adapter.read(model.student)
    assert set(seen) == {torch.float32}


def test_class_branch_learns_the_clusters_of_the_matched_proposals(samples):
    run = tiny("detr")
    model = quiet(build_pretrainer(run.stock_model, run.pretrain)).train()
    two = [
        dataclasses.replace(s, boxes=s.boxes[:8], clusters=torch.arange(8) % CLASSES) for s in samples(0, 3)
    ]
    losses = losses_of(model, two)
    detector, projector = stock_detector((run, model))
    detector.backbone.eval()
    views = model.data_preprocessor(two, True)["views"]
    _, ids, logits = stock_reading(detector, projector, *views[0])
    clusters = torch.cat([s.clusters for s in two])
    last = torch.cat(logits[-2:])
    wanted = torch.where(ids < 0, CLASSES, clusters[ids.clamp(min=0)])[-len(last) :]
    weight = torch.tensor([1.0] * CLASSES + [0.1])
    assert losses["loss_cls"].item() == pytest.approx(cross_entropy(last, wanted, weight).item(), rel=1e-5)


def test_query_embedding_is_copied_and_the_rest_averaged():
    run = tiny("detr")
    model = build_pretrainer(run.stock_model, run.pretrain)
    before = copy.deepcopy(model.teacher.bbox_head.fc_reg.weight)
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1)
    model.momentum_step(0.75)
    assert torch.equal(model.teacher.query_embedding.weight, model.student.query_embedding.weight)
    assert torch.allclose(model.teacher.bbox_head.fc_reg.weight, before + 0.25)


def test_background_is_no_id_of_a_proposal(model, batch):
    seen = []
    original = model._sample
    model._sample = lambda *views: seen.extend(views) or original(*views)
    losses_of(model, batch)
    del model._sample
    assert seen
    for reading in seen:
        proposals = reading.ids[reading.ids != BACKGROUND]
        assert set(proposals.tolist()) == set(range(16))


def clustered(root, k):
    """Random cluster ids for the dataset's boxes, committed."""
    manifest = open_dataset(root).manifest
    boxes = manifest.totals.proposals
    ids = torch.randint(1, k + 1, (boxes,), dtype=torch.int32).numpy()
    record = ClusterRecord(
        boxes=boxes,
        boxes_of=boxes_fingerprint(manifest),
        k=k,
        pca=2,
        seed=0,
        features={},
        versions={},
        files=(),
    )
    write_clusters(root, record, Clusters(k, ids, torch.zeros(boxes).numpy()))
    return ids


def test_a_run_does_not_go_on_with_other_clusters_of_the_same_number(mined_dataset, tmp_path):
    data = shutil.copytree(mined_dataset, tmp_path / "data")
    run = load_run_config(CONFIGS / "tiny_detr.py", {"iterations": 1}, {})
    for seed in range(2):
        torch.manual_seed(seed)
        clustered(data, 7)
        if seed == 0:
            pretrain(run, data, tmp_path / "work", RunOptions(workers=0))
    with pytest.raises(AlignDetError, match=r"belongs to another run:\n  clusters: "):
        pretrain(run, data, tmp_path / "work", RunOptions(workers=0))


def test_a_run_takes_its_classes_from_the_dataset(mined_dataset, tmp_path, capfd):
    data = shutil.copytree(mined_dataset, tmp_path / "data")
    run = load_run_config(CONFIGS / "tiny_detr.py", {"iterations": 1}, {})
    options = RunOptions(workers=0, log_interval=1)
    for k, said in ((1, "every proposal is of one class, `object`"), (7, "learns 7 clusters")):
        if k > 1:
            clustered(data, k)
        last = pretrain(run, data, tmp_path / f"work{k}", options)
        weights = torch.load(last, weights_only=True)["model"]
        assert len(weights["student.bbox_head.fc_cls.bias"]) == k + 1
        assert said in capfd.readouterr().out
    with pytest.raises(AlignDetError, match=r"7 clusters, pretrain.classes is 3"):
        pretrain(
            dataclasses.replace(run, pretrain=dataclasses.replace(run.pretrain, classes=3)),
            data,
            tmp_path / "few",
            options,
        )
