"""The whole product on one laptop: mine, look, pretrain, export, load in stock mmdet. `make demo` runs this.

python examples/demo.py [IMAGES]

IMAGES is a folder of pictures; without it, the photographs that scikit-image and scikit-learn ship are used.
Everything lands in demo/; run it again and finished steps are not done twice.
"""

import shlex
import subprocess
import sys
import time
from pathlib import Path

EXAMPLES = Path(__file__).parent
ALIGNDET = Path(sys.executable).with_name("aligndet")
DETECTOR = "fcos_lite0"
ITERATIONS = 40


def run(title: str, *command: str | Path) -> None:
    """Print and run one command; stop the demo when it fails."""
    words = [str(word) for word in command]
    shown = shlex.join([Path(words[0]).name, *words[1:]])
    print(f"\n\033[1m{title}\033[0m\n$ {shown}", flush=True)
    started = time.monotonic()
    if subprocess.run(words, check=False).returncode:
        raise SystemExit(f"the demo stopped: {shown} failed")
    print(f"({time.monotonic() - started:.0f} s)", flush=True)


def main(images: Path | None) -> None:
    """Run every step on ``images``, in a folder of its own below demo/."""
    from aligndet_train.config import shipped_config
    from proposals.dataset import open_dataset

    home = Path("demo") / (images.resolve().name if images else "the-photographs")
    if images is None:
        images = home / "images"
        run(
            "Photographs from scikit-image and scikit-learn",
            sys.executable,
            EXAMPLES / "collect_photographs.py",
            images,
        )
    mined, work, sheet, model = home / "mined", home / "pretrained", home / "sheet.png", home / "model.pth"
    run("1. Mine proposals", ALIGNDET, "mine", images, mined)
    run("2. Look at them", ALIGNDET, "show", mined, "--n", "12", "--out", sheet)
    run(
        f"3. Pretrain FCOS on them, {ITERATIONS} steps, EfficientNet-Lite0 frozen", ALIGNDET, "pretrain",
        "--detector", DETECTOR, "--data", mined, "--work-dir", work, "--iterations", str(ITERATIONS),
        "--cfg-options", "pretrain.sampled_boxes=1024", "--cfg-options", "pretrain.views.short_sides=(192, 224)",
    )  # fmt: skip
    run("4. Export", ALIGNDET, "export", work / "last.pth", model, "--keep-predictors")
    picture = images / open_dataset(mined)[0].uri
    load = EXAMPLES / "load_in_stock_mmdet.py"
    run("5. Load it in stock mmdet", sys.executable, load, shipped_config(DETECTOR), model, picture)
    print(f"\nproposals  {mined}\nsheet      {sheet}\nweights    {model}\nlog        {work}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
