"""Options that several of the trainer's verbs have."""

from pathlib import Path
from typing import Annotated, Literal

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Amp = Annotated[bool, typer.Option("--amp", help="Compute in bfloat16 where it is safe.")]
BackboneWeights = Annotated[
    Path | None,
    typer.Option(help="Weights of the backbone: of pretrain-backbone, MoCo, DINO, torchvision ..."),
]
Cache = Annotated[
    Path | None,
    typer.Option(help="Local folder for shards; a URL's are kept in ~/.cache/aligndet by default."),
]
CacheGb = Annotated[float, typer.Option(min=0.001, help="Gigabytes of shards kept there.")]
CheckpointInterval = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]
Damaged = Annotated[
    Literal["raise", "skip"],
    typer.Option(help="Images or shards that cannot be read: stop, or replace and count."),
]
Data = Annotated[
    Path,
    typer.Option(help="A proposal dataset: what `aligndet mine IMAGES OUT` left in OUT, a folder or URL."),
]
Launcher = Annotated[
    Literal["none", "pytorch", "slurm"], typer.Option(help="pytorch (torchrun) or slurm for several GPUs.")
]
LogInterval = Annotated[int, typer.Option(min=1, help="Steps between log lines.")]
NoPythonConfig = Annotated[
    bool,
    typer.Option(
        "--no-python-config",
        help="Refuse configs in Python, whose code is run: only detectors by name, and configs in JSON or YAML.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only; the log file has the rest.")]
Resume = Annotated[bool, typer.Option(help="Continue from WORK_DIR/last.pth if it is there.")]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Print all that mmengine logs, which is in the log file anyway."),
]
Workers = Annotated[int, typer.Option(min=0, help="Processes that decode images.")]
CONFIG_HELP = "a mmdet config: .py, whose code is run (use files you trust), or .json or .yaml, plain data"
