"""A config's schedule, moved to a run of another length."""

import math
from itertools import accumulate, pairwise

from mmengine.config import Config, ConfigDict

from aligndet_train.detectors.class_names import class_name
from proposals.errors import AlignDetError

_WARMUP_SHARE = 10
# At their last step, not after it, they are back at the whole rate: of one step they never are.
_OF_TWO_STEPS = ("LinearLR", "ConstantLR", "LinearMomentum", "ConstantMomentum")
_WARM_UPS = ("Linear", "Constant", "QuadraticWarmup")
# What lasts from a phase's begin to its end: a cosine's half wave, one cycle.
_LASTING = ("T_max", "total_steps")


def move_schedule(config: Config, epochs: int, steps: int) -> None:
    """Move ``config``'s ``param_scheduler`` from its own length to ``epochs`` of ``steps``, in place.

    What counts epochs moves in proportion; a warm-up that counts steps stays as it is, but takes a tenth of the run at
    most. Raises AlignDetError for a phase in steps that is no warm-up.
    """
    usual = config.train_cfg.max_epochs
    schedulers = config.get("param_scheduler") or []
    schedulers = [schedulers] if isinstance(schedulers, dict) else schedulers
    for scheduler in schedulers:
        if not scheduler.get("by_epoch", True):
            _shorten_warm_up(scheduler, steps * epochs)
        elif epochs != usual:
            _move(scheduler, usual, epochs)
    config.param_scheduler = [scheduler for scheduler in schedulers if _has_time(scheduler, steps)]


def move_switches(config: Config, epochs: int) -> None:
    """Move the epochs from which RTMDet's and YOLOX's hooks leave mosaics out, in place; a run of one has none."""
    usual = config.train_cfg.max_epochs
    for hook in () if epochs == usual else config.get("custom_hooks") or []:
        for name in ("switch_epoch", "num_last_epochs"):
            if name in hook:
                hook[name] = min(max(1, round(hook[name] * epochs / usual)), epochs - 1)


def scale_floor(scheduler: ConfigDict, factor: float) -> None:
    """Move the learning rates that a schedule names as such with the one it is for."""
    for name in ("eta_min", "eta_max"):
        if class_name(scheduler["type"]).endswith("LR") and scheduler.get(name) is not None:
            scheduler[name] *= factor


def _shorten_warm_up(scheduler: ConfigDict, steps: int) -> None:
    _require_warm_up(scheduler)
    if "end" in scheduler:
        scheduler.end = max(1, min(scheduler.end, steps // _WARMUP_SHARE))


def _require_warm_up(scheduler: ConfigDict) -> None:
    """Raise AlignDetError for a phase in steps that is the schedule itself: its steps are those of other images."""
    kind = class_name(scheduler["type"])
    falls = scheduler.get("start_factor", 0) > scheduler.get("end_factor", 1)
    if not kind.startswith(_WARM_UPS) or scheduler.get("begin", 0) or falls:
        raise AlignDetError(
            f"the config's {kind} counts steps, which are those of the config's own images: count epochs, "
            "by_epoch=True, convert_to_iter_based=True"
        )


def _move(scheduler: ConfigDict, usual: int, epochs: int) -> None:
    factor = epochs / usual
    length = min(scheduler.get("end", usual), usual) - scheduler.get("begin", 0)
    to_the_end = scheduler.get("end", usual) >= usual
    # Rounded by itself a cosine may end before its phase, and rise again.
    lasting = [name for name in _LASTING if scheduler.get(name) == length]
    for name in ("begin", "end", "step_size", *_LASTING):
        if name in scheduler:
            # A first phase (a warm-up) keeps an epoch.
            scheduler[name] = max(round(scheduler[name] * factor), int(name != "begin"))
    if "end" in scheduler and to_the_end:
        scheduler.end = epochs
    moved = scheduler.get("end", epochs) - scheduler.get("begin", 0)
    scheduler.update(dict.fromkeys(lasting, moved))
    if "milestones" in scheduler:
        # A drop at the end of the last epoch would be none, as is one behind the config's own; two at one place count
        # twice.
        latest = max(1, moved - 1)
        kept = [m for m in scheduler.milestones if m < length]
        scheduler.milestones = [min(max(1, round(m * factor)), latest) for m in kept]
    if "periods" in scheduler:
        scheduler.periods = _moved_periods(scheduler.periods, factor)
    for name in ("patience", "cooldown"):
        if name in scheduler:
            scheduler[name] = round(scheduler[name] * factor)
    if class_name(scheduler["type"]).startswith("Exponential"):
        scheduler.gamma **= 1 / factor


def _moved_periods(periods: list[int], factor: float) -> list[int]:
    """Each of an epoch at least; together as long as they were, in proportion."""
    ends = [0, *(math.ceil(end * factor) for end in accumulate(periods))]
    return [max(1, end - begin) for begin, end in pairwise(ends)]


def _has_time(scheduler: ConfigDict, steps: int) -> bool:
    """Whether a short run of ``steps`` an epoch leaves the phase any, and a warm-up enough of them to end."""
    time = scheduler.get("end", math.inf) - scheduler.get("begin", 0)
    if scheduler.get("by_epoch", True) and scheduler.get("convert_to_iter_based"):
        time *= steps
    return bool(time >= (2 if class_name(scheduler["type"]) in _OF_TWO_STEPS else 1))
