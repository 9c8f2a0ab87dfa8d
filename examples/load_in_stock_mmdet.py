"""Load exported weights in a stock mmdet detector and run it: mmdet's own API, no pretraining code.

python examples/load_in_stock_mmdet.py CONFIG MODEL.pth IMAGE

Its class predictor is untrained, so the boxes it prints mean nothing yet: fine-tune first.
"""

import sys

import aligndet_train  # noqa: F401  lends mmdet its ops; not needed beside a compiled mmcv

# isort: split
import torch
from mmdet.apis import inference_detector, init_detector


def main(config: str, weights: str, image: str) -> None:
    """Build the detector of ``config``, load ``weights``, detect on ``image``."""
    detector = init_detector(config, weights, palette="random", device="cpu")
    exported = torch.load(weights, weights_only=True)["state_dict"]
    loaded = detector.state_dict()
    same = sum(torch.equal(loaded[name], value) for name, value in exported.items())
    found = inference_detector(detector, image).pred_instances
    print(f"{type(detector).__name__}: {same} of {len(exported)} exported tensors are in the detector")
    print(f"it runs: {len(found)} boxes on {image}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
