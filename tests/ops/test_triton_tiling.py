"""The table of tilings: every row gives right answers, and the choice depends on no N."""

from importlib import import_module

import pytest
import torch

import fastvq
from fastvq import testing

pytest.importorskip("triton", reason="Triton has no build for this platform")

MODULE = import_module("fastvq.ops.nearest._triton")
TILING = import_module("fastvq.ops.nearest._triton_tiling")
DEVICES = {
    "sm_80": TILING.Device(1, 163 << 10, 8),
    "sm_89": TILING.Device(1, 99 << 10, 8),
    "sm_90": TILING.Device(1, 227 << 10, 9),
    "sm_100": TILING.Device(1, 227 << 10, 10),
}
# each on a row of its own somewhere; wider ones only repeat the last row at length
WIDTHS = (16, 32, 64, 128, 192, 288)


@pytest.mark.parametrize("name", DEVICES)
def test_the_cuts_of_a_table_fit_together(name):
    device = DEVICES[name]
    for channels in (*WIDTHS, 1, 5, 48, 96, 100, 160, 192, 257, 700, 1024, 1100):
        for codes in (1, 64, 65, 8192):
            for narrow in (False, True):
                for regular in (False, True):
                    work = TILING.Work(channels, codes, narrow, regular)
                    coarse = TILING.search_tiling(work, device, fine=False).constants
                    fine = TILING.search_tiling(work, device, fine=True).constants
                    padded = TILING.padded_codes(codes, TILING.Tiling(coarse, {}))
                    for cut in (coarse, fine):
                        assert cut["PADDED_D"] % cut["BLOCK_D"] == 0
                        assert cut["PADDED_D"] >= channels
                        assert padded % cut["BLOCK_K"] == 0
                        # a thread owns whole pairs of columns
                        assert cut["BLOCK_K"] % (8 * cut["SPLIT"]) == 0
                    # the groups of the fine pass lie within those of the coarse one
                    assert coarse["SPLIT"] == fine["SPLIT"]
                    assert coarse["BLOCK_K"] % fine["BLOCK_K"] == 0
                    assert TILING.fits(work, TILING.coarse_cut(work, device), device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", WIDTHS)
def test_every_row_is_exact(monkeypatch, channels, dtype):
    """Rows that the coarse pass proves, and near ties that go through all the others."""
    x, codebook = testing.clustered(16, 100, channels, spread=0.05)
    twins = codebook[:50] + 1e-4 * torch.randn(50, channels)
    # 200 codes in an order of their own, some of them twice
    codebook = torch.cat([codebook, twins, codebook[50:]])[torch.randperm(200)].to(dtype)
    x = x.to(dtype)
    tables = {(d.major, d.shared): d for d in DEVICES.values()}
    seen = set()
    for device in tables.values():
        narrow = dtype != torch.float32
        work = TILING.Work(channels, len(codebook), narrow, True)
        cut = TILING.coarse_cut(work, device)
        if cut in seen:
            continue
        seen.add(cut)
        monkeypatch.setattr(MODULE, "_device", lambda _, device=device: device)
        # as it is on a GPU, not as the other tests have it
        monkeypatch.setattr(MODULE, "rescore_tiling", TILING.rescore_tiling)
        with fastvq.use_backend("triton"):
            testing.assert_nearest(x, codebook, fastvq.ops.nearest(x, codebook))
