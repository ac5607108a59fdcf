"""Programs that share the codes of a row: the answer of one program, bit for bit."""

from importlib import import_module

import pytest
import torch

import fastvq
from fastvq import testing
from fastvq.ops import nearest

triton = pytest.importorskip("triton", reason="Triton has no build for this platform")
tl = import_module("triton.language")

share_out = import_module("fastvq.ops.nearest._triton_shares").share_out
MODULE = import_module("fastvq.ops.nearest._triton")
TILING = import_module("fastvq.ops.nearest._triton_tiling")
# of a device with so many multiprocessors: one program, a few shares, one for each tile of codes
PROCESSORS = (1, 3, 64)


class _Skipped:
    def __getitem__(self, grid):
        return lambda *args, **options: None


@pytest.fixture
def passes(monkeypatch):
    """What the passes of a search leave to the rescoring: the groups, and the rows on each list."""
    prepare, search = MODULE.prepare, MODULE._launch
    ready, lists = {}, {}

    def prepare_once(codebook, *args, **options):
        key = codebook.data_ptr()
        if key not in ready:
            ready[key] = prepare(codebook, *args, **options)
        return ready[key]._replace(state=ready[key].state.clone())

    def launch(step, x, scales, codes, *rest):
        search(step, x, scales, codes, *rest)
        counts = codes.state[:, step.goal].tolist()
        lists[step.goal] = [
            step.unproven[h, :n].sort().values.tolist() for h, n in enumerate(counts)
        ]

    monkeypatch.setattr(TILING, "LEAST", 1)
    monkeypatch.setattr(MODULE, "search_tiling", TILING.search_tiling.__wrapped__)
    # few enough that a merge of a handful of shares goes around its loop
    monkeypatch.setattr(MODULE, "MERGE", MODULE.MERGE | {"BLOCK_S": 2})
    monkeypatch.setattr(MODULE, "prepare", prepare_once)
    monkeypatch.setattr(MODULE, "_launch", launch)
    monkeypatch.setattr(MODULE, "rescore_kernel", _Skipped())
    monkeypatch.setattr(MODULE, "_refine", lambda *args: None)

    def run(x, codebook, processors, precision="exact", metric="euclidean"):
        device = TILING.Device(processors, 227 << 10, 9)
        monkeypatch.setattr(MODULE, "_device", lambda _: device)
        lists.clear()
        groups, _ = MODULE.nearest(x, codebook, metric, precision)
        return groups, list(lists.values())

    return run


def ties_across_tiles():
    """Every code once in each tile of codes."""
    x, distinct = testing.gaussian(70, 32, 16, seed=20)
    return x, distinct.repeat(8, 1)


def all_codes_equal():
    x, codebook = testing.gaussian(20, 1, 8, seed=21)
    return x, codebook.repeat(200, 1)


def bad_rows_and_codes():
    x, codebook = testing.gaussian(140, 300, 20, seed=22)
    x[3, 5], x[40, 0], x[139, 1] = torch.nan, torch.inf, -torch.inf
    codebook[60:200] = torch.nan  # a tile without a code
    return x, codebook


def near_ties():
    """Rows that the coarse pass proves, that the fine pass proves, and that neither does."""
    x, codebook = testing.clustered(150, 90, 32, spread=0.05, seed=23)
    twins = [codebook[20:65] + 3e-3 * torch.randn(45, 32) for _ in range(2)]
    return x, torch.cat([codebook, *twins, codebook[:20], codebook[:20]])


def overflowing():
    x, codebook = testing.gaussian(20, 150, 8, seed=24)
    return x * 1e30, codebook * torch.logspace(-30, 38, 150).unsqueeze(-1)


CASES = {case.name: case.make for case in testing.NEAREST_CASES}
INPUTS = {
    **{name: CASES[name] for name in ("on_the_codes", "midpoints", "mixed_norms", "no_good_code")},
    "ties across tiles": ties_across_tiles,
    "all codes equal": all_codes_equal,
    "bad rows and codes": bad_rows_and_codes,
    "near ties": near_ties,
    "overflowing": overflowing,
    "an odd number of tiles": lambda: testing.gaussian(129, 577, 5, seed=25),
    "16 bits": lambda: testing.gaussian(129, 300, 32, dtype=torch.float16, seed=26),
    "wide": lambda: testing.gaussian(9, 200, 300, seed=27),
    "wide, in several parts": lambda: testing.gaussian(150, 70, 272, seed=28),
}


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.usefixtures("poisoned_empty")
def test_shares_change_no_group_and_no_list(passes, name, precision):
    x, codebook = (tensor.contiguous() for tensor in INPUTS[name]())
    x, codebook = x[None, :, None], codebook[None]
    groups, lists = passes(x, codebook, 1, precision)
    for processors in PROCESSORS[1:]:
        again, lists_again = passes(x, codebook, processors, precision)
        assert torch.equal(again, groups)
        if precision == "exact":
            assert lists_again == lists
    if name == "near ties" and precision == "exact":
        # or nothing of the above was at stake
        pending, unresolved = (len(rows[0]) for rows in lists)
        assert 64 < pending < x.shape[1]
        assert 0 < unresolved < pending
        assert ((groups > 1 << 31) & (groups < 1 << 62)).any()


@pytest.fixture
def shared(monkeypatch):
    """Whole searches whose programs share the codes, and how many searches were merged."""
    merges, kernel = [], MODULE.merge_kernel

    class Counted:
        def __getitem__(self, grid):
            merges.append(grid)
            return kernel[grid]

    monkeypatch.setattr(TILING, "LEAST", 1)
    monkeypatch.setattr(MODULE, "search_tiling", TILING.search_tiling.__wrapped__)
    monkeypatch.setattr(MODULE, "merge_kernel", Counted())
    device = TILING.Device(16, 227 << 10, 9)
    monkeypatch.setattr(MODULE, "_device", lambda _: device)
    with fastvq.use_backend("triton"):
        yield merges


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
def test_exact_with_shares(shared, metric):
    x, codebook = testing.gaussian(40, 130, 12, seed=30)
    codebook[70:90] = codebook[:20]
    x[7, 3] = torch.nan
    testing.assert_nearest(x, codebook, nearest(x, codebook, metric=metric), metric)
    assert len(shared) == 2


def test_heads_and_channels_first_with_shares(shared):
    x, codebooks = testing.gaussian(12, 2 * 70, 8, seed=31)
    codebooks = codebooks.view(2, 70, 8)
    images = testing.channels_first(x, 2, 3).unsqueeze(-2).expand(-1, -1, -1, 2, -1)
    result = nearest(images, codebooks)
    assert len(shared) == 2
    for h in range(2):
        found = fastvq.ops.Nearest(
            result.indices[..., h].flatten(), result.distances[..., h].flatten()
        )
        testing.assert_nearest(x, codebooks[h], found)


def test_float64_is_not_shared_out(shared):
    x, codebook = testing.gaussian(9, 130, 4, dtype=torch.float64, seed=32)
    testing.assert_nearest(x, codebook, nearest(x, codebook))
    assert shared == []


def searches():
    """(rows, codes K', tiling, processors) across the table."""
    for processors in (1, 7, 84, 108, 132, 148):
        for channels in (8, 64, 256, 512):
            device = TILING.Device(processors, 227 << 10, 9)
            for codes in (64, 1024, 8192, 1 << 18):
                work = TILING.Work(channels, codes, False, True)
                for fine in (False, True):
                    tiling = TILING.search_tiling(work, device, fine=fine)
                    for rows in (1, 127, 128, 4096, 8449, 1 << 20):
                        yield rows, TILING.padded_codes(codes, tiling), tiling, device


def test_shares_fill_the_processors_and_no_more():
    for rows, codes, tiling, device in searches():
        programs = tiling.programs(device, 1)
        cut, shares = tiling.constants, TILING.shares(rows, codes, tiling, programs)
        tiles = -(-rows // cut["BLOCK_M"])
        assert shares == 1 or tiles * shares <= programs
        if tiles <= programs // 2 and codes == 1 << 18:
            # a share of whole tiles of codes may be longer than an even one, by a tile
            assert shares * tiles > programs // 3


def test_the_room_for_shares_is_enough_for_any_list_and_a_constant():
    for rows, codes, tiling, device in searches():
        programs = tiling.programs(device, 1)
        room = TILING.room(rows, codes, tiling, programs)
        assert room <= programs * tiling.constants["BLOCK_M"] <= 2 * device.processors * 128
        for count in {1, 60, 64, 65, 128, 500, 4000, rows} - set(range(rows + 1, 9999)):
            shares = TILING.shares(count, codes, tiling, programs)
            assert shares == 1 or shares * count <= room


@triton.jit
def _share_out_kernel(counts_ptr, tiles_ptr, programs_ptr, out_ptr, ROWS, LEAST, N: tl.constexpr):
    i = tl.arange(0, N)
    span, shares = share_out(
        tl.load(counts_ptr + i), tl.load(tiles_ptr + i), tl.load(programs_ptr + i), ROWS, LEAST
    )
    tl.store(out_ptr + i, span)
    tl.store(out_ptr + N + i, shares)


def test_host_and_device_share_out_alike():
    size = 1024
    counts, tiles, programs = (torch.randint(1, most, (size,)) for most in (9000, 130, 300))
    for rows, least in ((128, 2), (64, 1)):
        out = torch.empty(2, size, dtype=torch.int64)
        _share_out_kernel[(1,)](counts, tiles, programs, out, rows, least, N=size)
        tiling = TILING.Tiling({"BLOCK_M": rows, "BLOCK_K": 64, "LEAST": least}, {})
        for i in range(size):
            expected = TILING.shares(int(counts[i]), 64 * int(tiles[i]), tiling, int(programs[i]))
            span, shares = out[:, i].tolist()
            assert shares == expected
            assert (shares - 1) * span < tiles[i] <= shares * span, "a share without a tile"
