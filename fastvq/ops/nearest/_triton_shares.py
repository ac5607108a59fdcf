# SPDX-License-Identifier: Apache-2.0
"""Few rows: several programs search the codes for one tile of rows, and what they find is merged.

A share of the codes yields the first code of its best group, the scores of that group and of the
next, and the limit that the latter has to pass for the proof. Over all shares the minimum of each
is what one program would have found, bit for bit: a score depends on its row and code alone, and
a minimum on no order. How many shares there are follows from the number of rows, which for a list
the device alone knows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastvq.ops.nearest._triton_rows import NOT_FINITE, UNWRITTEN, append

# above every code
LAST = tl.constexpr(0x7FFFFFFF)
# what a share yields, side by side: one address for the four of them; floats as their bits
_LOWEST, _FOLLOWING, _LIMIT, _GROUP = (tl.constexpr(i) for i in range(4))
FIELDS = tl.constexpr(4)


@triton.jit
def share_out(count, tiles, programs, rows, least):
    """Tiles of codes in a share, and shares of a tile of ``rows`` rows, that occupy the programs.

    ``_triton_tiling.shares`` says the same to the host.
    """
    wanted = tl.maximum(programs // tl.maximum(tl.cdiv(count, rows), 1), 1)
    span = tl.maximum(tl.cdiv(tiles, wanted), least)
    return span, tl.cdiv(tiles, span)


@triton.jit
def store_share(shares_ptr, entry, live, lowest, following, limit, group):
    """Writes what a share yields for each row [R] to its entry."""
    entry_ptr = shares_ptr + entry * FIELDS
    tl.store(entry_ptr + _LOWEST, lowest.to(tl.int32, bitcast=True), mask=live)
    tl.store(entry_ptr + _FOLLOWING, following.to(tl.int32, bitcast=True), mask=live)
    tl.store(entry_ptr + _LIMIT, limit.to(tl.int32, bitcast=True), mask=live)
    tl.store(entry_ptr + _GROUP, group, mask=live)


@triton.jit
def settle(
    indices_ptr, append_ptr, count_ptr, n, H, live, group, following, limit, CERTIFY: tl.constexpr
):
    """Writes the group of each row [R]; puts the rows on the list whose group is not proven."""
    group = group.to(tl.int64)
    if CERTIFY:
        uncertain = live & (group != NOT_FINITE) & ~(following > limit)
        group = tl.where(uncertain, UNWRITTEN, group)
        append(append_ptr, count_ptr, n, uncertain)
    tl.store(indices_ptr + n.to(tl.int64) * H, group, mask=live)


@triton.jit(do_not_specialize=["N", "TILES", "ROOM", "PROGRAMS", "ROWS", "LEAST", "LIST", "APPEND"])
def merge_kernel(
    shares_ptr, state_ptr, indices_ptr, rows_ptr, append_ptr,
    N, H, TILES, ROOM, PROGRAMS, ROWS, LEAST, LIST, APPEND,
    CERTIFY: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Settles the rows of a search (of a list, or all where LIST is ALL_ROWS) from their shares.

    Nothing is left to do where one program searched all the codes. TILES, PROGRAMS, ROWS and LEAST
    are those of the search; one compiled kernel serves both passes, and every number of rows.
    """
    i_h = tl.program_id(1).to(tl.int64)
    shares_ptr += i_h * ROOM * FIELDS
    state_ptr += i_h * 8
    rows_ptr += i_h * N
    listed = LIST >= 0
    count = tl.where(listed, tl.load(state_ptr + tl.maximum(LIST, 0)), N)
    _, shares = share_out(count, TILES, PROGRAMS, ROWS, LEAST)
    blocks = tl.where(shares > 1, tl.cdiv(count, BLOCK_M), 0)
    for i_block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        position = i_block * BLOCK_M + tl.arange(0, BLOCK_M)
        live = position < count
        n = tl.where(listed, tl.load(rows_ptr + position, mask=live & listed, other=0), position)
        group, following, limit = _best_share(
            shares_ptr, position, live, count, shares, BLOCK_M, BLOCK_S
        )
        settle(
            indices_ptr + i_h, append_ptr + i_h * N, state_ptr + APPEND, n, H, live,
            group, following, limit, CERTIFY,
        )  # fmt: skip


@triton.jit
def _best_share(
    shares_ptr, position, live, count, shares, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr
):
    """Group, next score and limit of each row [BLOCK_M] over its shares, as of one search."""
    lowest = tl.full([BLOCK_M], float("inf"), tl.float32)
    following = tl.full([BLOCK_M], float("inf"), tl.float32)
    limit = tl.full([BLOCK_M], float("inf"), tl.float32)
    group = tl.full([BLOCK_M], LAST, tl.int32)
    for start in range(0, shares, BLOCK_S):
        share = start + tl.arange(0, BLOCK_S)[None, :]
        mask = live[:, None] & (share < shares)
        entry_ptr = shares_ptr + (share * count + position[:, None]) * FIELDS
        low = _load_bits(entry_ptr + _LOWEST, mask)
        next_one = _load_bits(entry_ptr + _FOLLOWING, mask)
        bound = _load_bits(entry_ptr + _LIMIT, mask)
        code = tl.load(entry_ptr + _GROUP, mask=mask, other=LAST)
        least = tl.min(low, 1)
        code_of_least = tl.min(tl.where(low > least[:, None], LAST, code), 1)
        chosen = (code == code_of_least[:, None]) & ~(low > least[:, None])
        next_of_least = tl.min(tl.where(chosen, next_one, low), 1)
        limit_of_least = tl.min(tl.where(chosen, bound, float("inf")), 1)
        better = (least < lowest) | ((least == lowest) & (code_of_least < group))
        following = tl.where(
            better, tl.minimum(lowest, next_of_least), tl.minimum(following, least)
        )
        limit = tl.where(better, limit_of_least, limit)
        group = tl.where(better, code_of_least, group)
        lowest = tl.where(better, least, lowest)
    return group, following, limit


@triton.jit
def _load_bits(ptr, mask):
    """float32 from their bits, infinite where there is none."""
    bits = tl.load(ptr, mask=mask, other=0)
    return tl.where(mask, bits.to(tl.float32, bitcast=True), float("inf"))
