"""COCO's AP of boxes, as pycocotools computes it."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmdet.datasets.api_wrappers import COCOeval
from mmdet.evaluation.metrics import CocoMetric
from mmdet.registry import METRICS

METRIC = "AlignDetCocoAp"
# The first of COCOeval's stats, by CocoMetric's names.
_NAMES = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")


@METRICS.register_module(name=METRIC, force=True)
class CocoAp(CocoMetric):
    """mmdet's CocoMetric on boxes of a COCO json, but not rounded: its tenth of a point is as large as what seeds
    of one run differ by."""

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """``bbox_mAP`` and so on, as fractions, -1 where nothing is of that size; empty when no box was found.

        The boxes stay in ``outfile_prefix``.bbox.json where one is given.
        """
        truth = self._coco_api
        self.cat_ids = truth.get_cat_ids(cat_names=self.dataset_meta["classes"])
        self.img_ids = truth.get_img_ids()
        with TemporaryDirectory() as folder:
            prefix = self.outfile_prefix or f"{folder}/results"
            files = self.results2json([found for _, found in results], prefix)
            boxes = json.loads(Path(files["bbox"]).read_bytes())
        if not boxes:
            return {}
        evaluation = COCOeval(truth, truth.loadRes(boxes), "bbox")
        evaluation.params.catIds = self.cat_ids
        evaluation.params.imgIds = self.img_ids
        evaluation.params.maxDets = list(self.proposal_nums)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return {
            f"bbox_{name}": float(value) for name, value in zip(_NAMES, evaluation.stats[:6], strict=True)
        }
