"""The installed OpenCV: is it the contrib build, and which build and CPU dispatch is it?

`opencv-python` (pulled in by mmcv-lite) and `opencv-contrib-python` install into one folder, so whichever
came last wins; when it is the plain one, `cv2.ximgproc` is gone although pip lists the contrib package.
"""

import cv2

from proposals.errors import AlignDetError

REPAIR = (
    "pip uninstall -y opencv-python opencv-python-headless opencv-contrib-python-headless && "
    "pip install --force-reinstall --no-deps opencv-contrib-python"
)


def has_ximgproc() -> bool:
    """True when this cv2 has the module that holds selective search."""
    return hasattr(cv2, "ximgproc") and hasattr(cv2.ximgproc, "segmentation")


def require_ximgproc() -> None:
    """Raise AlignDetError with the repair command when this cv2 lacks ``ximgproc``."""
    if not has_ximgproc():
        raise AlignDetError(
            f"the cv2 {cv2.__version__} at {cv2.__file__} has no ximgproc module: another opencv package overwrote "
            f"opencv-contrib-python (they share one folder). Run: {REPAIR}"
        )


def build_identity() -> dict[str, str]:
    """``{"version", "dispatch"}``: selective search is equal only within one build on one CPU feature level."""
    lines = [line.strip() for line in cv2.getBuildInformation().splitlines()]
    dispatch = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("Dispatch")), "")
    active = [name for name in dispatch.split() if _cpu_supports(name)]
    return {"version": str(cv2.__version__), "dispatch": "+".join(active) or "baseline"}


def _cpu_supports(feature: str) -> bool:
    codes = {"SSE4_1": 6, "SSE4_2": 7, "AVX": 10, "AVX2": 11, "FP16": 9, "FMA3": 12, "AVX512_SKX": 256}
    return feature in codes and bool(cv2.checkHardwareSupport(codes[feature]))


def main() -> None:
    """``python -m proposals.opencv``: exit 0 when selective search can run on this cv2, else say how to repair it."""
    try:
        require_ximgproc()
    except AlignDetError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
