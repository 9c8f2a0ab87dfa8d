"""What about labels makes AP mean less than it says, in sentences for people."""

from collections import Counter

from aligndet_train.finetuning.image_sizes import other_sizes
from aligndet_train.finetuning.labels import Labels, shared_images


def label_warnings(labels: Labels, held_out: Labels | None = None) -> list[str]:
    """Of each set: images of other sizes, images listed twice; of both: images that they share."""
    sets = [labels] if held_out is None else [labels, held_out]
    found = [check(one) for one in sets for check in (other_sizes, _listed_twice)]
    if held_out is not None:
        found.append(_shared(labels, held_out))
    return [line for line in found if line is not None]


def _listed_twice(labels: Labels) -> str | None:
    twice = [name for name, count in Counter(labels.names).items() if count > 1]
    if not twice:
        return None
    return (
        f"{labels.source} lists {len(twice)} images more than once, {twice[0]} first: what is found in them counts as "
        "wrong where another entry has the box. Bring the boxes of an image under one entry"
    )


def _shared(train: Labels, val: Labels) -> str | None:
    shared = shared_images(train, val)
    if not shared:
        return None
    folder = train.source.is_dir() or val.source.is_dir()
    lists = ": of a VOC folder, its lists (ImageSets/Main/train.txt and val.txt)" if folder else ""
    return (
        f"{len(shared)} of {len(val.names)} images of {val.source} are in {train.source} too, {shared[0]} first: AP on "
        f"images that were learned says little about others. Give --train and --val images of their own{lists}"
    )
