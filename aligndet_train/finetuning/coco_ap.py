"""COCO's AP of boxes, as pycocotools computes it."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict

from mmdet.datasets.api_wrappers import COCOeval
from mmdet.evaluation.metrics import CocoMetric
from mmdet.registry import METRICS
from mmengine.evaluator import Evaluator

METRIC = "AlignDetCocoAp"
# The first of COCOeval's stats, by CocoMetric's names.
_NAMES = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")


class ClassFigures(TypedDict):
    """One class: AP and AP50 in per cent, -1 where no box is of it, and how many are; crowds and difficult ones not."""

    name: str
    AP: float
    AP50: float
    boxes: int


class BoxEvaluation(COCOeval):
    """COCO's, in which any number of boxes may lie on (by IoU, as in VOC) a box of ``difficult``, by annotation id.

    They count neither for nor against. A crowd excuses what lies in it instead: pycocotools knows nothing else, and
    forgets ``ignore``.
    """

    def __init__(self, truth: Any, found: Any, difficult: frozenset[int]) -> None:
        super().__init__(truth, found, "bbox")
        self._difficult = difficult

    def _prepare(self) -> None:
        super()._prepare()
        for box in self._excusing(list(self._gts.values())):
            box.update(ignore=1, iscrowd=1)

    def computeIoU(self, image: int, category: int) -> Any:  # noqa: N802, pycocotools' name
        """[boxes found, boxes] IoU; of all classes where they are not told apart."""
        categories = [category] if self.params.useCats else self.params.catIds
        excusing = self._excusing([self._gts[image, number] for number in categories])
        for box in excusing:
            box["iscrowd"] = 0
        overlaps = super().computeIoU(image, category)
        for box in excusing:
            box["iscrowd"] = 1
        return overlaps

    def _excusing(self, groups: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        return [box for group in groups for box in group if box["id"] in self._difficult]


def difficult_boxes(truth: Any) -> frozenset[int]:
    """The annotations of a pycocotools COCO that are marked ``ignore``: asked for before an evaluation unmarks them."""
    listed = truth.anns.values()
    return frozenset(box["id"] for box in listed if box.get("ignore") and not box["iscrowd"])


@METRICS.register_module(name=METRIC, force=True)
class CocoAp(CocoMetric):
    """mmdet's CocoMetric on boxes of a COCO json, but not rounded: its tenth of a point is as large as what seeds
    of one run differ by.

    ``of_classes``: those of the last evaluation, in the main process.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.of_classes: list[ClassFigures] = []
        self._difficult = difficult_boxes(self._coco_api)

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
            self.of_classes = self._figures_of_classes(None)
            return {}
        evaluation = BoxEvaluation(truth, truth.loadRes(boxes), self._difficult)
        evaluation.params.catIds = self.cat_ids
        evaluation.params.imgIds = self.img_ids
        evaluation.params.maxDets = list(self.proposal_nums)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        self.of_classes = self._figures_of_classes(evaluation)
        return {
            f"bbox_{name}": float(value) for name, value in zip(_NAMES, evaluation.stats[:6], strict=True)
        }

    def _figures_of_classes(self, evaluation: COCOeval | None) -> list[ClassFigures]:
        """Means over what stats[0] and stats[1] are means of; 0 where no box was found, as ``evaluation`` is None."""
        found: list[ClassFigures] = []
        for index, category in enumerate(self._coco_api.load_cats(self.cat_ids)):
            listed = self._coco_api.get_ann_ids(img_ids=self.img_ids, cat_ids=[category["id"]])
            boxes = sum(
                not one["iscrowd"] and one["id"] not in self._difficult
                for one in self._coco_api.load_anns(listed)
            )
            ap = ap50 = 0.0 if boxes else -1.0
            if evaluation is not None and boxes:
                # (IoU, recall, class, size, most boxes of an image)
                precision = 100 * evaluation.eval["precision"][:, :, index, 0, -1]
                ap, ap50 = float(precision.mean()), float(precision[0].mean())
            found.append(
                {"name": category["name"], "AP": round(ap, 2), "AP50": round(ap50, 2), "boxes": boxes}
            )
        return found


def of_classes(evaluator: Evaluator) -> list[ClassFigures]:
    """Of the last evaluation, in the order of the categories; empty but in the main process."""
    return next((metric.of_classes for metric in evaluator.metrics if isinstance(metric, CocoAp)), [])
