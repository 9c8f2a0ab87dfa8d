"""From the key layouts of published checkpoints to the names of mmdet's and timm's backbones; every key accounted for.

Two steps. A *project* says where in a file the backbone is and what the other keys are (MoCo's queue, DINO's head). A
*family* says what the backbone's own names mean, whoever trained it; `families` renames and reorders them.
"""

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor

from aligndet_train.backbones.families import Family, canonical
from aligndet_train.backbones.files import WeightsFile, read_file
from aligndet_train.backbones.ours import is_ours, read_ours
from proposals.errors import AlignDetError

State = dict[str, Tensor]


@dataclass(frozen=True)
class Project:
    """A published layout. prefix: of the backbone's keys. needs: one key must begin with each of these, * for anything.

    left: {how a key begins: what it is} of keys that are no part of the backbone, the longest beginning first.
    """

    name: str
    prefix: str
    needs: tuple[str, ...]
    left: tuple[tuple[str, str], ...]

    def describes(self, names: Collection[str]) -> bool:
        """Whether every need is met."""
        return all(any(fnmatchcase(name, f"{need}*") for name in names) for need in self.needs)


ALONE = "a backbone alone (torchvision, timm, DINO)"
# In this order: the first whose needs are met. ``module.`` of DataParallel is stripped before.
_HEAD, _TEACHER, _CLASSIFIER = "projection head", "momentum encoder", "classifier"
PROJECTS = (
    Project(
        "MoCo v1/v2", "encoder_q.", ("encoder_q.",),
        (("encoder_q.fc.", _HEAD), ("encoder_k.", _TEACHER), ("queue", "queue of keys")),
    ),
    Project(
        "MoCo v3", "base_encoder.", ("base_encoder.",),
        (
            ("base_encoder.fc.", _HEAD), ("base_encoder.head.", _HEAD),
            ("momentum_encoder.", _TEACHER), ("predictor.", "predictor"),
        ),
    ),
    Project(
        "PixPro", "encoder.", ("encoder.", "encoder_k.", "projector."),
        (
            ("encoder_k.", _TEACHER), ("projector", _HEAD),
            ("value_transform.", "pixel propagation"), ("predictor.", "predictor"),
        ),
    ),
    Project(
        "SimMIM", "encoder.", ("encoder.mask_token", "decoder."),
        (("encoder.mask_token", "mask token"), ("decoder.", "decoder")),
    ),
    Project(
        "SimSiam", "encoder.", ("encoder.", "predictor."),
        (("encoder.fc.", _HEAD), ("predictor.", "predictor")),
    ),
    Project(
        "DINOv2", "backbone.", ("backbone.", "dino_head."),
        (("backbone.mask_token", "mask token"), ("dino_head.", _HEAD), ("ibot_head.", _HEAD)),
    ),
    Project("DINO", "backbone.", ("backbone.", "head.last_layer."), (("head.", _HEAD),)),
    Project(
        "aligndet pretrain", "student.backbone.", ("student.backbone.",),
        (("student.", "neck or head"), ("teacher.", "teacher's neck or head")),
    ),
    Project("mmengine (mmpretrain, mmdet)", "backbone.", ("backbone.",), (("", "neck or head"),)),
    Project(
        "SwAV", "", ("projection_head.", "prototypes."),
        (("projection_head.", _HEAD), ("prototypes.", "prototypes")),
    ),
    Project(
        "MAE", "", ("mask_token", "blocks.", "decoder_blocks."),
        (("mask_token", "mask token"), ("decoder_", "decoder")),
    ),
    Project("DINOv2", "", ("mask_token", "blocks.*.ls1.gamma"), (("mask_token", "mask token"),)),
    Project(
        "a ViT with a mask token (BEiT)", "", ("mask_token", "blocks."),
        (("mask_token", "mask token"), ("lm_head.", "head for the masked patches")),
    ),
    Project(
        ALONE, "", (),
        (("fc.", _CLASSIFIER), ("classifier.", _CLASSIFIER), ("head.", _CLASSIFIER)),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Converted:
    """A backbone out of a weights file.

    project, family: what the file is. state: by the family's names, see `families`. used: {key of the file: name in
    state}; left: {key of the file: why it is not used}; every key is in one of them. meta: of files of ours, see ours.
    """

    path: Path
    project: str
    family: Family
    state: State
    used: dict[str, str]
    left: dict[str, str]
    file: WeightsFile
    meta: dict[str, Any] | None = None

    def for_backbone(self, kind: str) -> State:
        """``state`` by the names of the mmdet backbone class ``kind``; tensors reordered where it needs them so."""
        if kind == "TimmBackbone":
            return self.family.to_timm(self.state)
        return self.state


_OURS = (("projector.", "projection head"), ("predictor.", "predictor"))


def convert(path: Path) -> Converted:
    """Read ``path`` and take it apart. Raises AlignDetError when it cannot be read, see files.read_file."""
    file = read_file(path)
    try:
        return _taken_apart(path, file)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise AlignDetError(
            f"{path} has the names of a backbone and not its tensors ({type(error).__name__}: {error}): it is damaged, "
            "or of a layout this does not know"
        ) from error


def _taken_apart(path: Path, file: WeightsFile) -> Converted:
    plain = {key: key.removeprefix("module.") for key in file.state}
    meta = None
    if is_ours(file.content):
        prefix = "backbone." if any(key.startswith("backbone.") for key in plain) else ""
        project, meta = Project("aligndet pretrain-backbone", prefix, (), _OURS), read_ours(file.content)[1]
    else:
        project = next(project for project in PROJECTS if project.describes(plain.values()))
    inside, left = _split(project, plain)
    if len(set(inside.values())) < len(inside):
        raise ValueError("it has a key with and without a prefix")
    family, state, renamed = canonical({name: file.state[key] for key, name in inside.items()})
    used = {key: new for key, name in inside.items() if (new := renamed[name][0]) is not None}
    left |= {key: renamed[name][1] for key, name in inside.items() if renamed[name][0] is None}
    return Converted(path, project.name, family, state, used, left, file, meta)


def _split(project: Project, plain: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """({key: name inside the backbone}, {key: why it is left}) of ``plain``, {key: name without wrappers}."""
    inside, left = {}, {}
    for key, name in plain.items():
        reasons = [(len(start), why) for start, why in project.left if name.startswith(start)]
        longest, reason = max(reasons, default=(0, "no part of the backbone"))
        if name.startswith(project.prefix) and (longest <= len(project.prefix)):
            inside[key] = name.removeprefix(project.prefix).removeprefix("timm_model.")
        else:
            left[key] = reason
    return inside, left
