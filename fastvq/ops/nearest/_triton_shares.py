# SPDX-License-Identifier: Apache-2.0
"""Few rows: several programs search the codes for one tile of rows, and what they find is merged.

A share of the codes yields its two best groups of different slots (see ``_scan``) by their first
codes, their scores, the least score of its further groups, and the limit that this has to pass for
the proof. What is merged from them is what one program would have found, bit for bit: a score
depends on its row and code alone, a minimum on no order, and of several groups in one slot only
the best is known by name, in whichever shares they lie. How many shares there are follows from the
number of rows, which for a list the device alone knows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastvq.ops.nearest._triton_rows import NOT_FINITE, UNWRITTEN, append, two_groups

# above every code
LAST = tl.constexpr(0x7FFFFFFF)
# what a share yields, side by side: one address for all of it; floats as their bits
_LOWEST, _RUNNER_UP, _FOLLOWING, _LIMIT, _GROUP, _OTHER = (tl.constexpr(i) for i in range(6))
FIELDS = tl.constexpr(6)


@triton.jit
def share_out(count, tiles, programs, rows, least):
    """Tiles of codes in a share, and shares of a tile of ``rows`` rows, that occupy the programs.

    ``_triton_tiling.shares`` says the same to the host.
    """
    wanted = tl.maximum(programs // tl.maximum(tl.cdiv(count, rows), 1), 1)
    span = tl.maximum(tl.cdiv(tiles, wanted), least)
    return span, tl.cdiv(tiles, span)


@triton.jit
def store_share(shares_ptr, entry, live, lowest, runner_up, following, limit, group, other):
    """Writes what a share yields for each row [R] to its entry."""
    entry_ptr = shares_ptr + entry * FIELDS
    tl.store(entry_ptr + _LOWEST, lowest.to(tl.int32, bitcast=True), mask=live)
    tl.store(entry_ptr + _RUNNER_UP, runner_up.to(tl.int32, bitcast=True), mask=live)
    tl.store(entry_ptr + _FOLLOWING, following.to(tl.int32, bitcast=True), mask=live)
    tl.store(entry_ptr + _LIMIT, limit.to(tl.int32, bitcast=True), mask=live)
    tl.store(entry_ptr + _GROUP, group, mask=live)
    tl.store(entry_ptr + _OTHER, other, mask=live)


@triton.jit
def settle(
    indices_ptr, append_ptr, count_ptr, n, H, live, group, other, runner_up, following, limit,
    CERTIFY: tl.constexpr,
):  # fmt: skip
    """Writes the groups that hold the nearest code of each row [R]: one if it is proven, else two.

    Rows that two are not proven for go on the list.
    """
    groups = group.to(tl.int64)
    if CERTIFY:
        finite = group != NOT_FINITE
        uncertain = live & finite & ~(following > limit)
        groups = tl.where(finite & ~(runner_up > limit), two_groups(group, other), groups)
        groups = tl.where(uncertain, UNWRITTEN, groups)
        append(append_ptr, count_ptr, n, uncertain)
    tl.store(indices_ptr + n.to(tl.int64) * H, groups, mask=live)


@triton.jit(
    do_not_specialize=[
        *("N", "FIRST", "MOST", "TILES", "ROOM", "PROGRAMS", "ROWS", "LEAST", "SLOTS"),
        *("LIST", "APPEND"),
    ]
)  # fmt: skip
def merge_kernel(
    shares_ptr, state_ptr, indices_ptr, rows_ptr, append_ptr,
    N, FIRST, MOST, H, TILES, ROOM, PROGRAMS, ROWS, LEAST, SLOTS, LIST, APPEND,
    CERTIFY: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Settles the rows of a search from their shares: those of a list, or at most MOST of N from
    FIRST on where LIST is ALL_ROWS.

    Nothing is left to do where one program searched all the codes. TILES, PROGRAMS, ROWS, LEAST
    and SLOTS are those of the search; one compiled kernel serves both passes, and every number of
    rows.
    """
    i_h = tl.program_id(1).to(tl.int64)
    shares_ptr += i_h * ROOM * FIELDS
    state_ptr += i_h * 8
    rows_ptr += i_h * N
    listed = LIST >= 0
    count = tl.where(listed, tl.load(state_ptr + tl.maximum(LIST, 0)), 0)
    count = tl.where(listed, count, tl.minimum(N - FIRST, MOST))
    _, shares = share_out(count, TILES, PROGRAMS, ROWS, LEAST)
    blocks = tl.where(shares > 1, tl.cdiv(count, BLOCK_M), 0)
    for i_block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        position = i_block * BLOCK_M + tl.arange(0, BLOCK_M)
        live = position < count
        n = tl.where(listed, tl.load(rows_ptr + position, mask=live & listed, other=0), position)
        entry_ptr = shares_ptr + position[:, None] * FIELDS
        group, limit = _best(entry_ptr, live, count, shares, BLOCK_M, BLOCK_S)
        other, runner_up, following = _other_best(
            entry_ptr, live, count, shares, group, SLOTS, BLOCK_M, BLOCK_S
        )
        settle(
            indices_ptr + i_h, append_ptr + i_h * N, state_ptr + APPEND, FIRST + n, H, live,
            group, other, runner_up, following, limit, CERTIFY,
        )  # fmt: skip


@triton.jit
def _best(entry_ptr, live, count, shares, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr):
    """Group and limit of the best share of each row [BLOCK_M], of equal ones the first."""
    lowest = tl.full([BLOCK_M], float("inf"), tl.float32)
    limit = tl.full([BLOCK_M], float("inf"), tl.float32)
    group = tl.full([BLOCK_M], LAST, tl.int32)
    for start in range(0, shares, BLOCK_S):
        share_ptr, mask = _shares(entry_ptr, live, count, shares, start, BLOCK_S)
        low = _load_bits(share_ptr + _LOWEST, mask)
        bound = _load_bits(share_ptr + _LIMIT, mask)
        code = tl.load(share_ptr + _GROUP, mask=mask, other=LAST)
        least = tl.min(low, 1)
        code_of_least = tl.min(tl.where(low > least[:, None], LAST, code), 1)
        chosen = (code == code_of_least[:, None]) & ~(low > least[:, None])
        better = (least < lowest) | ((least == lowest) & (code_of_least < group))
        limit = tl.where(better, tl.min(tl.where(chosen, bound, float("inf")), 1), limit)
        group = tl.where(better, code_of_least, group)
        lowest = tl.where(better, least, lowest)
    return group, limit


@triton.jit
def _other_best(
    entry_ptr, live, count, shares, group, SLOTS, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr
):
    """The best group in other slots than that of ``group``, its score, and the least further one.

    That of a share is its best group, or its other one where the best is in the slot of ``group``.
    """
    runner_up = tl.full([BLOCK_M], float("inf"), tl.float32)
    following = tl.full([BLOCK_M], float("inf"), tl.float32)
    other = tl.full([BLOCK_M], LAST, tl.int32)
    slot = (group // 2 % SLOTS)[:, None]
    for start in range(0, shares, BLOCK_S):
        share_ptr, mask = _shares(entry_ptr, live, count, shares, start, BLOCK_S)
        low = _load_bits(share_ptr + _LOWEST, mask)
        next_low = _load_bits(share_ptr + _RUNNER_UP, mask)
        further = _load_bits(share_ptr + _FOLLOWING, mask)
        code = tl.load(share_ptr + _GROUP, mask=mask, other=LAST)
        next_code = tl.load(share_ptr + _OTHER, mask=mask, other=LAST)
        collides = code // 2 % SLOTS == slot
        score = tl.where(collides, next_low, low)
        name = tl.where(collides, next_code, code)
        left_out = tl.where(collides, low, next_low)
        further = tl.minimum(further, tl.where(code == group[:, None], float("inf"), left_out))
        least = tl.min(score, 1)
        name_of_least = tl.min(tl.where(score > least[:, None], LAST, name), 1)
        chosen = (name == name_of_least[:, None]) & ~(score > least[:, None])
        further = tl.min(tl.minimum(further, tl.where(chosen, float("inf"), score)), 1)
        better = (least < runner_up) | ((least == runner_up) & (name_of_least < other))
        following = tl.minimum(tl.minimum(following, further), tl.where(better, runner_up, least))
        other = tl.where(better, name_of_least, other)
        runner_up = tl.where(better, least, runner_up)
    return other, runner_up, following


@triton.jit
def _shares(entry_ptr, live, count, shares, start, BLOCK_S: tl.constexpr):
    """The entries [R, BLOCK_S] of some shares, and which of them exist."""
    share = start + tl.arange(0, BLOCK_S)[None, :]
    return entry_ptr + share * count * FIELDS, live[:, None] & (share < shares)


@triton.jit
def _load_bits(ptr, mask):
    """float32 from their bits, infinite where there is none."""
    bits = tl.load(ptr, mask=mask, other=0)
    return tl.where(mask, bits.to(tl.float32, bitcast=True), float("inf"))
