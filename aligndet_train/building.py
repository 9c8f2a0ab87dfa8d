"""Build modules of mmdet's configs."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope


@contextmanager
def mmdets_scope() -> Iterator[None]:
    """In the block, names in a config are mmdet's, or of our backbones; nothing is logged of what is built."""
    # mmengine logs every initialised parameter at INFO: hundreds of lines that say nothing.
    if not MMLogger.check_instance_created("aligndet-build"):
        MMLogger.get_instance("aligndet-build", log_level="WARNING")
    import_module("aligndet_train.backbones")
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield
