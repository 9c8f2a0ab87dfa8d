"""A pack as `benchmarks/transfer.py pack` leaves it, as far as the planning of jobs reads it."""

import json
from pathlib import Path
from typing import Any


def labelled(images: int) -> dict[str, Any]:
    """COCO's form: ``images`` pictures with a box each."""
    return {
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "width": 64, "height": 48}
            for number in range(images)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "bbox": [4, 4, 24, 24],
                "area": 576,
                "iscrowd": 0,
            }
            for number in range(images)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }


def small_pack(folder: Path) -> Path:
    """1,400 mined pictures by their count alone, 20 labelled ones by their json."""
    (folder / "mined").mkdir(parents=True)
    (folder / "mined" / "dataset.json").write_text(json.dumps({"totals": {"images": 1400}}))
    for name in ("train", "val", "tune_train", "tune_val"):
        (folder / f"{name}.json").write_text(json.dumps(labelled(20)))
    return folder
