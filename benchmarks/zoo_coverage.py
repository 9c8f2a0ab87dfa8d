"""What of mmdet's own zoo can be pretrained: one config per family folder, converted, trained, exported, loaded.

python benchmarks/zoo_coverage.py --results zoo.jsonl               # all that has no row yet; kill and run again freely
python benchmarks/zoo_coverage.py --results zoo.jsonl --only atss   # one family anew
python benchmarks/zoo_coverage.py --results zoo.jsonl --table docs/zoo.md aligndet_train/zoo.json

Of every folder of configs that mmdet installs, the config with the shortest name (the first of those) speaks for
its family, plus what ALSO names. It runs as it is, but for what a CPU cannot afford: no pretrained weights are
fetched, backbones are cut to 50 layers and queries to 300, SyncBN is BN, images are small and proposals few. Each
config is a forked process with a time limit, so a crash is a row. Two steps of two photographs from --data (mined
here from scikit-image's when not given) must give finite losses and positives, and a picture of the last must be
drawn; the export must load into the stock model with no key unexpected.
"""

import argparse
import dataclasses
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from aligndet_train import ops
from proposals.errors import AlignDetError

REPOSITORY = Path(__file__).parents[1]
ALSO = (
    "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
    "htc/htc-without-semantic_r50_fpn_1x_coco.py",
    "nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco.py",
    "centernet/centernet_r18_8xb16-crop512-140e_coco.py",
    "centernet/centernet-update_r50_fpn_8xb8-amp-lsj-200e_coco.py",
    "sabl/sabl-retinanet_r50_fpn_1x_coco.py",
    "retinanet/retinanet_r50_fpn_1x_coco.py",
    "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "rtmdet/rtmdet_tiny_8xb32-300e_coco.py",
    "yolox/yolox_tiny_8xb8-300e_coco.py",
    "pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py",
    "libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py",
    "cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py",
    "guided_anchoring/ga-faster-rcnn_r50_fpn_1x_coco.py",
    "guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py",
    "dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py",
    "sabl/sabl-cascade-rcnn_r50_fpn_1x_coco.py",
    "reppoints/reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py",
)
VIEWS = {"short_sides": (160, 192), "long_side": 256}
# SSD's last levels are empty below the size it is named for.
LARGER_VIEWS = {"short_sides": (320,), "long_side": 512}
STEPS = 2
Row = dict[str, Any]


def main() -> None:
    """Parse arguments; run every config that is due, or write the table."""
    arguments = _arguments()
    if arguments.table:
        write_table(_with_untried(rows_of(arguments.results)), *arguments.table)
        return
    ops.install()
    import_module("mmdet.models")
    import_module("aligndet_train.box_domain")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data or mined_photographs(Path(folder))
        known = {row["config"] for row in rows_of(arguments.results)}
        for config in chosen_configs():
            family = config.split("/")[0]
            due = family in arguments.only if arguments.only else config not in known
            if due:
                row = run_process(config, data, arguments.limit)
                print(f"{config}: {row.get('reason') or 'ok'} ({row['seconds']:.0f} s)", flush=True)
                with arguments.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, default=Path("zoo.jsonl"), help="JSON lines; the last per config counts"
    )
    parser.add_argument(
        "--only", "--family", nargs="+", default=[], help="family folders to run, known or not"
    )
    parser.add_argument(
        "--data", type=Path, help="a proposal dataset; default: one mined from photographs in wheels"
    )
    parser.add_argument("--limit", type=int, default=300, help="seconds a config may take")
    parser.add_argument("--table", type=Path, nargs=2, metavar=("MARKDOWN", "JSON"), help="write the tables")
    return parser.parse_args()


def config_folder() -> Path:
    """Where the installed mmdet keeps its configs."""
    spec = find_spec("mmdet")
    if spec is None or spec.origin is None:
        raise AlignDetError("mmdet is not installed. Run: pip install 'aligndet[train]'")
    return Path(spec.origin).parent / ".mim" / "configs"


def chosen_configs() -> list[str]:
    """FAMILY/CONFIG.py of every family folder, and those of ALSO, sorted."""
    chosen = set(ALSO)
    for folder in config_folder().iterdir():
        # *_tta.py configures testing alone.
        names = [path.name for path in folder.glob("*.py") if not path.stem.endswith("_tta")]
        if names and folder.name != "_base_":
            chosen.add(f"{folder.name}/{min(names, key=lambda name: (len(name), name))}")
    return sorted(chosen)


def mined_photographs(folder: Path) -> Path:
    """A dataset mined from the photographs that scikit-image and scikit-learn ship."""
    photographs, data = folder / "photographs", folder / "data"
    collect = [sys.executable, str(REPOSITORY / "examples" / "collect_photographs.py"), str(photographs)]
    subprocess.run(collect, check=True, capture_output=True)
    mine = [str(Path(sys.executable).with_name("aligndet")), "mine", str(photographs), str(data)]
    subprocess.run(mine, check=True, capture_output=True)
    return data


def run_process(config: str, data: Path, limit: int) -> Row:
    """One config in a forked process: mmdet's imports are paid once."""
    started = time.monotonic()
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    process = fork.Process(target=lambda: answers.put(run_config(config, data)))
    process.start()
    process.join(limit)
    row: Row = {"family": config.split("/")[0], "config": config}
    if process.is_alive():
        process.kill()
        row["reason"] = f"not done after {limit} s"
    elif process.exitcode:
        row["reason"] = f"the process ended with exit code {process.exitcode}"
    else:
        row |= answers.get()
    return row | {"seconds": time.monotonic() - started}


def run_config(config: str, data: Path) -> Row:
    """Convert, train, export and load one config; what failed is in ``reason``."""
    row: Row = {"converted": False, "trained": False, "loaded": None, "keys": None, "reason": None}
    try:
        _convert_and_train(config, data, row)
    except AlignDetError as error:
        row["reason"] = str(error).splitlines()[0].replace(f"{config_folder()}/", "")
    except Exception as error:
        row["reason"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    return row


def _convert_and_train(config: str, data: Path, row: Row) -> None:
    from aligndet_train.box_domain import build_pretrainer
    from aligndet_train.config import load_run_config

    views = LARGER_VIEWS if "/ssd" in config else VIEWS
    path = config_folder() / config
    run = load_run_config(path, {"batch_size": 2, "proposals_per_image": 10, "views": views}, {})
    run = dataclasses.replace(run, stock_model=affordable(run.stock_model))
    model = build_pretrainer(run.stock_model, run.pretrain)
    row["adapter"] = model.adapter.family
    row["converted"] = True
    row["losses"] = train(model, run, data)
    row["trained"] = True
    with tempfile.TemporaryDirectory() as folder:
        row |= export_and_load(model, run, Path(folder))


def affordable(value: Any) -> Any:
    """A model config without pretrained weights or SyncBN, with at most 50 layers of backbone and 300 queries."""
    if isinstance(value, dict):
        kept = {k: affordable(v) for k, v in value.items() if k != "pretrained" and not _is_pretrained(v)}
        if kept.get("depth") in (101, 152):
            kept["depth"] = 50
        # Small images have no 900 places to choose queries from.
        if kept.get("num_queries", 0) > 300:
            kept["num_queries"] = 300
        return kept
    if isinstance(value, list):
        return [affordable(item) for item in value]
    return "BN" if value in ("SyncBN", "MMSyncBN") else value


def _is_pretrained(value: Any) -> bool:
    return isinstance(value, dict) and "checkpoint" in value


def train(model: Any, run: Any, data: Path) -> dict[str, float]:
    """The losses of the last of STEPS steps; raises when one is not finite, none of the boxes has a proposal, or the
    step cannot be drawn."""
    from mmengine.optim import OptimWrapper

    from aligndet_train.loader import build_loader
    from aligndet_train.monitoring.pictures import step_picture
    from aligndet_train.optimizer import build_optimizer
    from proposals.dataset import open_dataset

    model.train()
    wrapper = OptimWrapper(build_optimizer(model, run.pretrain, world_size=1), clip_grad={"max_norm": 10})
    before = {name: p.detach().clone() for name, p in model.student.named_parameters() if p.requires_grad}
    for batch in build_loader(open_dataset(data), run.pretrain, steps=STEPS, workers=0):
        logs = model.train_step(batch, wrapper)
        model.momentum_step(0.996)
        figures = {name: float(value) for name, value in logs.items()}
        if not all(torch.isfinite(torch.tensor(value)) for value in figures.values()):
            raise AlignDetError(f"a loss is not finite: {figures}")
        if not figures["positives"] or not figures["loss_contrastive"]:
            raise AlignDetError("no predicted box was assigned a proposal")
    step_picture(model, batch[0], most=8)
    still = [n for n, p in model.student.named_parameters() if n in before and torch.equal(before[n], p)]
    if len(still) == len(before):
        raise AlignDetError("no parameter moved")
    return figures | {"parameters_unmoved": len(still), "parameters": len(before)}


def export_and_load(model: Any, run: Any, folder: Path) -> Row:
    """{"loaded", "keys", "head_loaded", "head_keys"}: what the stock model takes of the export, backbone apart."""
    from aligndet_train.box_domain import build_detector
    from aligndet_train.checkpoint import save_checkpoint
    from aligndet_train.export import export

    identity = {"config": run.name, "stock_model": run.stock_model}
    parameters = [p for p in model.parameters() if p.requires_grad]
    checkpoint = save_checkpoint(folder, model, torch.optim.SGD(parameters, lr=0.1), STEPS, identity)
    report = export(checkpoint, folder / "model.pth")
    stock = build_detector(run.stock_model)
    state = torch.load(folder / "model.pth", weights_only=True)["state_dict"]
    missing, unexpected = stock.load_state_dict(state, strict=False)
    # torch fills in the counters of BatchNorm layers by itself.
    expected = {name for name in report.left_at_init if not name.endswith("num_batches_tracked")}
    if unexpected or report.unexpected or {*missing} - {*report.left_at_init} or expected - {*missing}:
        raise AlignDetError(f"the stock model does not take the export: unexpected {unexpected[:3]}")
    beyond = [name for name in report.loaded if not name.startswith("backbone.")]
    left = [name for name in report.left_at_init if not name.startswith("backbone.")]
    return {
        "loaded": len(report.loaded),
        "keys": len(stock.state_dict()),
        "head_loaded": len(beyond),
        "head_keys": len(beyond) + len(left),
        "left_at_init": sorted({_layer(name) for name in left}),
    }


def _layer(key: str) -> str:
    return ".".join(part for part in key.split(".")[:-1] if not part.isdigit())


def rows_of(results: Path) -> list[Row]:
    """The last row of every config, sorted by config."""
    lines = results.read_text().splitlines() if results.exists() else []
    return [row for _, row in sorted({row["config"]: row for row in map(json.loads, lines)}.items())]


def _with_untried(rows: list[Row]) -> list[Row]:
    tried = {row["config"] for row in rows}
    untried = [config for config in chosen_configs() if config not in tried]
    new = [{"family": c.split("/")[0], "config": c, "reason": "not tried yet"} for c in untried]
    return sorted(rows + new, key=lambda row: row["config"])


def write_table(rows: list[Row], markdown: Path, packaged: Path) -> None:
    """docs/zoo.md for people, and the table that `aligndet detectors` reads."""
    import mmdet

    versions = {"mmdet": mmdet.__version__, "torch": torch.__version__}
    date = datetime.now(UTC).date().isoformat()
    fields = ("family", "config", "adapter", "converted", "trained", "head_loaded", "head_keys", "reason")
    defaults = {"converted": False, "trained": False}
    table = {
        "date": date,
        "versions": versions,
        "rows": [{f: row.get(f, defaults.get(f)) for f in fields} for row in rows],
    }
    packaged.write_text(json.dumps(table, indent=1) + "\n")
    head, _, rest = markdown.read_text().partition("<!-- table -->")
    _, _, tail = rest.partition("<!-- end of table -->")
    passed = sum(bool(row.get("head_loaded")) for row in rows)
    made = (
        f"{date}, mmdet {versions['mmdet']}, torch {versions['torch']}: {passed} of {len(rows)} configs pass."
    )
    lines = [
        made,
        "",
        "| config | adapter | converted | trains | keys loaded | reason if not |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_line(row) for row in rows]
    markdown.write_text("\n".join([f"{head}<!-- table -->", *lines, f"<!-- end of table -->{tail}"]))


def _line(row: Row) -> str:
    yes = {True: "yes", False: "no", None: "no"}
    keys = f"{row['head_loaded']} of {row['head_keys']}" if row.get("head_loaded") else ""
    reason = (row.get("reason") or "").replace("|", "/")
    config = row["config"].removesuffix(".py")
    cells = (
        config,
        row.get("adapter") or "",
        yes[row.get("converted")],
        yes[row.get("trained")],
        keys,
        reason,
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
