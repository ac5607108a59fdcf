# SPDX-License-Identifier: Apache-2.0
"""How the launches of the search are cut: a row for each generation of GPUs and width of vectors.

The rows of Hopper are the fastest of those timed on an H200; no other GPU has timed its rows yet,
which were chosen by counts: of the instructions of the inner loop, read off the machine code, of
bytes and of registers (``benchmarks/NOTES.md``). ``python -m benchmarks.gpu --tune`` times the
alternatives and prints the rows to put here.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from torch import Tensor

from fastvq.ops._layout import ceil_div, power_of_two

# of the fine pass, and what every block of codes is a multiple of
BLOCK_K = 64
# tiles of codes that repay a program its start: reading x, scaling it, and one more share to merge
LEAST = 2
_REGISTERS = 1 << 16  # of a multiprocessor, of every generation


class Device(NamedTuple):
    """What the launches depend on."""

    processors: int
    shared: int  # bytes of shared memory that a program may use
    major: int  # of the compute capability


class Work(NamedTuple):
    """What is to be searched."""

    channels: int
    codes: int
    narrow: bool  # x enters the products as it is: 16-bit, neither centred nor scaled
    regular: bool  # the channels of x lie side by side, and its rows start at a multiple of 16

    @classmethod
    def of(cls, x: Tensor, codes: int, *, centred: bool) -> Work:
        """The work of searching x ``[B, M, H, D]`` among so many codes."""
        channels = x.shape[-1]
        regular = x.stride(-1) == 1 and (channels <= 16 or channels % 16 == 0)
        return cls(channels, codes, not centred, regular)


class Cut(NamedTuple):
    """The tile of the coarse pass."""

    rows: int
    codes: int
    channels: int  # of one product
    split: int  # groups of codes / split / 4 codes, each compared within one thread
    resident: bool  # whether x stays on chip over all the codes
    warps: int
    stages: int
    registers: int


class Tiling(NamedTuple):
    """How a kernel is cut and launched: its constants and its launch options."""

    constants: dict[str, int | bool]
    options: dict[str, int]

    def programs(self, device: Device, heads: int) -> int:
        """How many programs of a head the device holds at a time."""
        threads = 32 * self.options["num_warps"]
        resident = max(1, _REGISTERS // (threads * self.options["maxnreg"]))
        return max(1, resident * device.processors // heads)


# (channels, codes, cut): the cut for vectors of at most so many channels and codes
Rows = tuple[tuple[int, int, Cut], ...]
_ANY = 1 << 31
_AMPERE: Rows = (
    (16, _ANY, Cut(128, 128, 16, 4, True, 8, 3, 255)),
    (64, _ANY, Cut(128, 128, 64, 4, True, 8, 3, 255)),
    (128, _ANY, Cut(128, 64, 128, 4, True, 8, 2, 255)),
    (256, _ANY, Cut(128, 64, 64, 4, True, 8, 2, 255)),
    (_ANY, _ANY, Cut(128, 64, 32, 4, False, 8, 3, 255)),
)
# 128 registers let two programs share a multiprocessor: one compares while the other multiplies. A
# limit that is stated keeps the assembler from spilling for one of its own. Few codes want small
# groups, whose rescoring is most of the search
_HOPPER_WIDE: Rows = (
    (32, _ANY, Cut(128, 64, 32, 2, True, 8, 3, 128)),
    (64, 2048, Cut(128, 64, 64, 4, True, 8, 3, 128)),
    (64, _ANY, Cut(128, 64, 64, 2, True, 8, 3, 128)),
    (128, _ANY, Cut(128, 64, 32, 4, True, 8, 3, 128)),
    (256, _ANY, Cut(128, 128, 128, 8, True, 8, 2, 255)),
    (_ANY, _ANY, Cut(128, 256, 64, 8, False, 8, 3, 255)),
)
_HOPPER_NARROW: Rows = (
    (32, _ANY, Cut(128, 64, 32, 2, True, 8, 3, 128)),
    (64, 2048, Cut(128, 64, 64, 4, True, 8, 3, 128)),
    (64, _ANY, Cut(128, 128, 64, 4, True, 8, 3, 128)),
    (128, _ANY, Cut(128, 64, 128, 4, True, 8, 3, 128)),
    (256, _ANY, Cut(128, 128, 128, 8, True, 8, 2, 255)),
    (_ANY, _ANY, Cut(128, 256, 64, 8, False, 8, 3, 255)),
)
_BLACKWELL: Rows = (
    (32, _ANY, Cut(128, 128, 32, 2, True, 8, 3, 255)),
    (64, _ANY, Cut(128, 128, 64, 4, True, 8, 3, 255)),
    (128, _ANY, Cut(128, 64, 128, 4, True, 8, 3, 255)),
    (_ANY, _ANY, Cut(128, 128, 32, 8, False, 8, 3, 255)),
)
# (major, narrow): the cuts, of which the first that fits is taken
TABLE = {
    (8, False): _AMPERE,
    (8, True): _AMPERE,
    (9, False): _HOPPER_WIDE,
    (9, True): _HOPPER_NARROW,
    (10, False): _BLACKWELL,
    (10, True): _BLACKWELL,
}


@functools.cache
def search_tiling(work: Work, device: Device, *, fine: bool) -> Tiling:
    """The tiling of one pass of the search: of the coarse one, or over the uncertain rows."""
    cut = coarse_cut(work, device)
    if fine:
        # its groups are parts of the groups of the coarse pass
        # ragged vectors are read element by element, and 32 addresses more would spill one
        block = 16 if work.channels <= 16 or work.channels % 16 else 32
        if block == 32 and device.major >= 9:
            # few steps, for each waits for its products; and chains short enough to prove the most
            block = math.gcd(64, padded_channels(work.channels))
        cut = Cut(64, BLOCK_K, block, cut.split, False, 8, 2, 255)
    constants = {
        "ENCODED": not fine and encodes(work, cut),
        "RESIDENT": cut.resident,
        "PADDED_D": padded_channels(work.channels),
        "BLOCK_M": cut.rows,
        "BLOCK_K": cut.codes,
        "BLOCK_D": cut.channels,
        "SPLIT": cut.split,
        "LEAST": LEAST,
    }
    options = {"num_warps": cut.warps, "num_stages": cut.stages, "maxnreg": cut.registers}
    return Tiling(constants, options)


def coarse_cut(work: Work, device: Device) -> Cut:
    """The row of the table for a search, its blocks brought to what the search has."""
    cut = _row(work, device)
    if encodes(work, cut):
        cut = _row(Work(padded_channels(work.channels), work.codes, True, True), device)
    # one product takes whole blocks of channels, and few codes need no wide tile
    return cut._replace(
        channels=math.gcd(cut.channels, padded_channels(work.channels)),
        codes=BLOCK_K if work.codes <= BLOCK_K else cut.codes,
    )


def encodes(work: Work, cut: Cut) -> bool:
    """Whether rows are rounded and put side by side before a search that reads them repeatedly."""
    return not cut.resident and not (work.narrow and work.regular)


def fits(work: Work, cut: Cut, device: Device) -> bool:
    """Whether shared memory holds all of x, or its blocks of every stage, and codes in flight."""
    if cut.resident:
        return 2 * padded_channels(work.channels) * (cut.rows + cut.stages * cut.codes) <= (
            device.shared
        )
    return 2 * cut.channels * cut.stages * (cut.rows + cut.codes) <= device.shared


def _row(work: Work, device: Device) -> Cut:
    if not work.regular:
        return _irregular_cut(work, device)
    rows = TABLE[min(max(device.major, 8), 10), work.narrow]
    return next(
        cut
        for channels, codes, cut in rows
        if work.channels <= channels and work.codes <= codes and fits(work, cut, device)
    )


def _irregular_cut(work: Work, device: Device) -> Cut:
    """Reading x takes an address for every element, and registers that a wide tile would need."""
    split = 1 if work.channels <= 32 else 2 if work.channels <= 64 else 4
    ragged = work.channels % 16 != 0
    pair = device.major == 9 and work.channels <= 128 and not ragged
    resident = Cut(128, BLOCK_K, 32, split, True, 8, 3, 128 if pair else 255)
    # the matrix units of Blackwell take no operand from registers, where x would wait at a loss
    if work.channels <= (64 if device.major >= 10 else 256) and fits(work, resident, device):
        return resident
    return resident._replace(channels=16 if ragged else 32, resident=False, stages=2)


def shares(rows: int, codes: int, tiling: Tiling, programs: int) -> int:
    """How many programs share the ``codes`` K' of a tile of rows: as many as find room at a time.

    ``_triton_shares.share_out`` says the same to the device.
    """
    tiles = codes // tiling.constants["BLOCK_K"]
    wanted = max(1, programs // ceil_div(rows, tiling.constants["BLOCK_M"]))
    return ceil_div(tiles, max(ceil_div(tiles, wanted), tiling.constants["LEAST"]))


def room(rows: int, codes: int, tiling: Tiling, programs: int) -> int:
    """The most entries that the shares of at most so many rows take, fewer rows included.

    More than one share means at most ``programs`` tiles of rows and shares, and a constant thereby.
    """
    most = shares(1, codes, tiling, programs)
    return min(rows * most, programs * tiling.constants["BLOCK_M"]) if most > 1 else 0


def rescore_tiling(channels: int, metric: str, coarse: Tiling) -> Tiling:
    """The tiling of the rescoring of the groups of the coarse pass."""
    constants = {name: coarse.constants[name] for name in ("BLOCK_K", "SPLIT")}
    group = constants["BLOCK_K"] // constants["SPLIT"] // 4
    # one warp, so that no sum leaves it, and at most 16 numbers of the codes to a thread
    constants["MEMBERS"] = min(8, group)
    constants["BLOCK_M"] = 16 // constants["MEMBERS"]
    constants["BLOCK_D"] = min(32 if channels % 16 == 0 else 16, power_of_two(channels))
    registers = 112 if metric == "euclidean" else 168
    return Tiling(constants, {"num_warps": 1, "maxnreg": registers})


def padded_codes(codes: int, coarse: Tiling) -> int:
    """K': what both passes cut into whole tiles."""
    return _padded(codes, max(BLOCK_K, coarse.constants["BLOCK_K"]))


def padded_channels(channels: int) -> int:
    """D': what every block of channels divides."""
    return 16 if channels <= 16 else _padded(channels, 32)


def _padded(size: int, block: int) -> int:
    return ceil_div(size, block) * block
