"""Whether images have the size that their labels are for: boxes of photographs that were shrunk since lie wrong."""

from aligndet_train.finetuning.labels import Labels
from proposals.images import ImageRejected, upright_size

# A look at each image of a large set would keep a slow disk busy for minutes.
_LOOKED_AT = 64


def other_sizes(labels: Labels) -> str | None:
    """A warning where some of up to 64 images, evenly chosen, are not as large as ``labels`` say; else None.

    What cannot be read is not looked at: training names it.
    """
    step = -(-len(labels.names) // _LOOKED_AT)
    chosen = list(zip(labels.names, labels.sizes, strict=True))[::step]
    different = [found for name, said in chosen if (found := _difference(labels, name, said)) is not None]
    if not different:
        return None
    return (
        f"{len(different)} of {len(chosen)} images of {labels.source} that were looked at are not as large as it says: "
        f"{different[0]}. Its boxes do not fit them: take the images that it was made for, or scale the boxes"
    )


def _difference(labels: Labels, name: str, said: tuple[int, int]) -> str | None:
    try:
        there = upright_size(labels.images / name)
    except (OSError, ImageRejected):
        return None
    if there == said or 0 in said:
        return None
    return f"{name} is {there[0]} x {there[1]} px upright, the labels say {said[0]} x {said[1]}"
