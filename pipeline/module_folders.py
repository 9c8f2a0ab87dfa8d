"""Where the processes of a job find Python modules: not in the folder it was started in, which may be a stranger's.

`cd photos; aligndet mine . OUT` must not run the cv2.py that lies among the photos.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def trusted(folders: Iterable[str]) -> list[str]:
    """``folders`` without the working directory; with it, if we are imported from there ourselves."""
    try:
        here, home = Path.cwd(), Path(__file__).parents[1].resolve()
    except FileNotFoundError:  # it was deleted
        return [folder for folder in folders if Path(folder).is_absolute()]
    return [folder for folder in folders if folder and (here == home or Path(folder).resolve() != here)]


def module_folders() -> list[str]:
    """Those of this process, also in a Ray worker whose job brought its own."""
    return trusted(sys.path)


class _Folders(list[str]):
    def extend(self, folders: Iterable[str]) -> None:
        super().extend(trusted(folders))


def job_config(ray: Any) -> Any:
    """A Ray job's configuration whose workers import from `trusted` folders: Ray would add the working directory."""
    config = ray.job_config.JobConfig()
    config._py_driver_sys_path = _Folders()
    return config
