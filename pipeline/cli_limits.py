"""What one image may take, as options of the verbs that search images."""

from typing import Annotated

import typer

ImageTimeout = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        max=86400.0,
        help="Seconds for one image, then it is rejected. Default: 120, more when large.",
    ),
]
ImageMemory = Annotated[
    float, typer.Option(min=0.05, max=2**20, help="GiB of memory for one image, then it is rejected.")
]
