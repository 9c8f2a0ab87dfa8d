"""Leave the class branch of a dense head out of exported weights: what is the rest worth?

    python benchmarks/without_class_branch.py box.safetensors regression.safetensors

RetinaNet's and FCOS's `bbox_head.cls_convs`, which the contrastive loss trains: a detector that loads the rest begins
them anew. `transfer.py run --arms regression` calls it.
"""

import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

CLASS_BRANCH = "bbox_head.cls_convs."


def main(source: Path, out: Path) -> None:
    """Ends the process where ``source`` has no such branch."""
    with safe_open(source, framework="pt") as file:
        names = list(file.keys())
        kept = {name: file.get_tensor(name) for name in names if not name.startswith(CLASS_BRANCH)}
        metadata = file.metadata()
    if len(kept) == len(names):
        sys.exit(f"{source} has no {CLASS_BRANCH}*: this is for RetinaNet's and FCOS's heads")
    save_file(kept, out, metadata)
    print(f"{out}: {len(kept)} of {len(names)} tensors")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
