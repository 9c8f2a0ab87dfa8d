"""Leave the class branch of a dense head out of exported weights: what is the rest worth?

    python benchmarks/without_class_branch.py box.safetensors no-class-branch.safetensors

RetinaNet's and FCOS's `bbox_head.cls_convs`, which the contrastive loss trains: a detector that loads the rest begins
them anew. `transfer.py run --arms no-class-branch` calls it.
"""

import argparse
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from proposals.dataset.files import publish, temporary_beside

CLASS_BRANCH = "bbox_head.cls_convs."


def leave_out(source: Path, out: Path) -> None:
    """Write ``source`` without the branch. Ends the process where it has none."""
    with safe_open(source, framework="pt") as file:
        names = list(file.keys())
        kept = {name: file.get_tensor(name) for name in names if not name.startswith(CLASS_BRANCH)}
        metadata = file.metadata()
    if len(kept) == len(names):
        sys.exit(f"{source} has no {CLASS_BRANCH}*: this is for RetinaNet's and FCOS's heads")
    with temporary_beside(out) as (temporary,):
        save_file(kept, temporary, metadata)
        publish(temporary, out)
    print(f"{out}: {len(kept)} of {len(names)} tensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("source", "out"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    leave_out(arguments.source, arguments.out)
