"""Colour and texture histograms of regions, counted per cell in one pass over the pixels.

Counts are integers, so adding cells up changes nothing; the division into float32 shares comes last. Per channel
25 colour bins and, from the four coded gradients, 8 x 10 texture bins.
"""

import numpy as np
import numpy.typing as npt

from proposals.selective_search.gradients import DIRECTIONS
from proposals.selective_search.jit import Index, helper, kernel
from proposals.selective_search.texture import BINS, CODES

COLOUR_BINS = 25
TEXTURE_BINS = 2 * DIRECTIONS * BINS
TALLY = COLOUR_BINS + DIRECTIONS * CODES  # counters per channel: colour bins, then codes per direction


@kernel("void(uint8[:,:,::1], uint8[:,::1], uint32[::1], int32[:,::1])")
def tally_cells(
    planes: npt.NDArray[np.uint8],
    codes: npt.NDArray[np.uint8],
    cell_of_pixel: npt.NDArray[np.uint32],
    tally: npt.NDArray[np.int32],
) -> None:
    """Count colour bins and gradient codes. planes: [H, W, C]. codes: [C * 4, H W]. tally: [cells, C * TALLY], out."""
    channels = planes.shape[2]
    values = planes.reshape(-1, channels)
    tally[:] = 0
    for pixel in range(len(cell_of_pixel)):
        row = tally[cell_of_pixel[pixel]]
        for channel in range(channels):
            base = channel * TALLY
            row[base + ((np.int64(values[pixel, channel]) * COLOUR_BINS) >> 8)] += 1
            base += COLOUR_BINS
            for direction in range(DIRECTIONS):
                row[base + np.int64(codes[channel * DIRECTIONS + direction, pixel])] += 1
                base += CODES


@helper
def _spread_codes(
    counts: npt.NDArray[np.int32],
    rest_up: Index,
    rest_down: Index,
    total: np.float32,
    shares: npt.NDArray[np.float32],
) -> None:
    """One direction's codes to its 10 positive and 10 negative bins, as shares of `total`."""
    bins = np.zeros(2 * BINS, np.int32)
    for code in range(CODES):
        up, down = rest_up, rest_down
        if code >= rest_up + rest_down:
            up = code - rest_down
        else:
            down = code - rest_up
        if counts[code] > 0:
            bins[up] += counts[code]
            bins[BINS + down] += counts[code]
    for index in range(2 * BINS):
        shares[index] = np.float32(bins[index]) / total


@kernel(
    "void(int32[:,::1], uint32[::1], uint8[:,::1], int32[::1], int32[:,::1], float32[:,::1], float32[:,::1])"
)
def describe_regions(
    cell_tally: npt.NDArray[np.int32],
    region_of_cell: npt.NDArray[np.uint32],
    rest: npt.NDArray[np.uint8],
    size: npt.NDArray[np.int32],
    tally: npt.NDArray[np.int32],
    colour: npt.NDArray[np.float32],
    texture: npt.NDArray[np.float32],
) -> None:
    """Histograms of regions. tally: [R, C * TALLY] scratch. colour: [R, C * 25], texture: [R, C * 80], out."""
    channels = cell_tally.shape[1] // TALLY
    tally[:] = 0
    for cell in range(len(region_of_cell)):
        region = region_of_cell[cell]
        for index in range(cell_tally.shape[1]):
            tally[region, index] += cell_tally[cell, index]
    for region in range(len(size)):
        colour_total = np.float32(size[region] * channels)
        texture_total = np.float32(size[region] * channels * 2 * DIRECTIONS)
        for channel in range(channels):
            base = channel * TALLY
            for index in range(COLOUR_BINS):
                share = np.float32(tally[region, base + index]) / colour_total
                colour[region, channel * COLOUR_BINS + index] = share
            for direction in range(DIRECTIONS):
                plane = channel * DIRECTIONS + direction
                first = base + COLOUR_BINS + direction * CODES
                _spread_codes(
                    tally[region, first : first + CODES],
                    np.int64(rest[plane, 0]),
                    np.int64(rest[plane, 1]),
                    texture_total,
                    texture[region, plane * 2 * BINS : (plane + 1) * 2 * BINS],
                )
