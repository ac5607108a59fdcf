"""What is particular to the compiled CPU backend: instruction sets, threads, the certificate."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from fastvq import _native, testing

if _native.reason() is not None and os.environ.get("FASTVQ_EXTENSION") == "0":
    pytest.skip("built without the extension, as FASTVQ_EXTENSION=0 asks", allow_module_level=True)

METRICS = ("euclidean", "cosine", "dot")
LEVELS = ("amx", "avx512_bf16", "avx512", "avx2_int16", "avx2", "portable")

# prints a digest of every answer, so that two processes can be compared bit by bit
DIGEST = """
import hashlib, torch
from fastvq import _native, testing
_native.load()
ops = torch.ops.fastvq_native
print(ops.capability())
for case in testing.NEAREST_CASES:
    x, codebook = case.make()
    for metric in ("euclidean", "cosine", "dot"):
        if (case.name, metric) == ("midpoints", "cosine"):
            continue  # parallel codes: only the rounding of float64 sums tells them apart
        answers = ops.nearest(x[None, :, None], codebook[None], metric, "exact")
        indices = answers[0].numpy().tobytes()
        print(case.name, metric, hashlib.sha256(indices).hexdigest())
"""


@pytest.fixture(autouse=True)
def _loaded():
    _native.load()


@pytest.fixture
def threads():
    """Sets torch's thread count for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def search(x, codebook, metric="euclidean", precision="exact"):
    """Indices and distances ``[N]`` of x ``[N, D]``, straight from the library."""
    indices, distances = torch.ops.fastvq_native.nearest(
        x[None, :, None], codebook[None], metric, precision
    )
    return indices.flatten(), distances.flatten()


def run_at(level):
    return subprocess.run(
        [sys.executable, "-c", DIGEST],
        env={**os.environ, "FASTVQ_CPU_CAPABILITY": level, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_instruction_set_chooses_the_same_codes():
    runs = {level: run_at(level) for level in LEVELS}
    lines = {}
    for level, run in runs.items():
        if run.returncode != 0:
            assert "one of those this machine has" in run.stderr, run.stderr
            continue
        name, *lines[level] = run.stdout.splitlines()
        assert name == level
    assert "portable" in lines
    for level, digests in lines.items():
        assert digests == lines["portable"], level


def test_unknown_instruction_set_is_an_error():
    run = run_at("sse9")
    assert run.returncode != 0
    assert "FASTVQ_CPU_CAPABILITY must be one of" in run.stderr
    assert "got 'sse9'" in run.stderr


@pytest.mark.parametrize("layout", ["channels-last", "channels-first"])
@pytest.mark.parametrize("metric", METRICS)
def test_bits_do_not_depend_on_the_threads(threads, layout, metric):
    x, codebook = testing.gaussian(4100, 97, 24)
    codebook[50:] = codebook[:47]
    canonical = x.view(4, 1025, 1, 24)
    if layout == "channels-first":
        canonical = canonical.transpose(1, 3).contiguous().transpose(1, 3)
    ops = torch.ops.fastvq_native
    factor = torch.tensor(0.3)
    results = []
    for count in (1, 2, 5):
        threads(count)
        indices, distances = ops.nearest(canonical, codebook[None], metric, "exact")
        results.append(
            [
                indices,
                distances,
                *ops.quantize(canonical, codebook[None], indices),
                ops.quantize_backward(canonical, factor, canonical, codebook[None], indices),
                *ops.statistics(canonical, indices, 97, None),
                *ops.statistics(canonical, indices, 97, codebook[None]),
            ]
        )
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            assert torch.equal(first, second)


def two_far_clusters():
    """Codes in two tight clusters far apart: no one centre serves both."""
    generator = torch.Generator().manual_seed(0)
    side = torch.randint(2, (400, 1), generator=generator) * 2.0 - 1.0
    codebook = side[:200] * 1e3 + 1e-2 * torch.randn(200, 16, generator=generator)
    x = side[:200] * 1e3 + 1e-2 * torch.randn(200, 16, generator=generator)
    return x.repeat(3, 1), codebook


def nearly_orthogonal():
    """Long vectors whose products cancel almost to zero, and must be told apart there."""
    generator = torch.Generator().manual_seed(2)
    side = torch.randint(2, (200, 1), generator=generator) * 2.0 - 1.0
    codebook = 1e-4 * torch.randn(200, 16, generator=generator)
    codebook[:, 8:] += side * 1e3
    x = 1e-4 * torch.randn(300, 16, generator=generator)
    x[:, :8] += 1e3
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    return x @ rotation, codebook @ rotation


def nearly_parallel():
    """Codes within 1e-4 of one direction: their cosines agree to eight digits."""
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(1, 24, generator=generator)
    bend = torch.randn(300, 24, generator=generator) * 1e-4
    x = direction + 1e-4 * torch.randn(500, 24, generator=generator)
    opposite = -direction * torch.rand(300, 1, generator=generator)
    return x, torch.cat([direction + bend, opposite])


def aligned_rounding():
    """Rows and codes that lose all they can to bfloat16, in the same direction in every channel.

    A significand just under a midpoint of two bfloat16 numbers loses 2^-8 of it, and rows parallel
    to what is lost meet the bound by Cauchy-Schwarz with equality. Codes come with their opposites,
    so that their mean is zero and centring does not undo it.
    """
    generator = torch.Generator().manual_seed(3)
    signs = torch.randint(2, (60, 32), generator=generator) * 2.0 - 1.0
    under, over = 1 + 2.0**-8 * (1 - 1e-4), 1 + 2.0**-8 * (1 + 1e-4)  # to 1 and to 1 + 2^-7
    codebook = torch.cat([signs * under, signs * over])
    lengths = 1 + torch.rand(2000, 1, generator=generator) * 2.0**-7
    x = signs[torch.arange(2000) % 60] * lengths
    return x, torch.cat([codebook, -codebook])


def aligned_integers():
    """Codes that lose half a step of 16-bit integers in every channel but one, towards the row.

    Integers are scaled by the length of the code, so the last channel decides whether the others
    lie just under or just over the midpoint of two. Those under it are nearer to every row.
    """
    generator = torch.Generator().manual_seed(4)
    signs = torch.randint(2, (60, 31), generator=generator) * 2.0 - 1.0
    longest = (32766 - 0.5 * 32**0.5) * (1 - 2.0**-16)
    step = 5791.5  # about that length over the square root of 32 channels
    under, over = (((longest / (step + off)) ** 2 - 31) ** 0.5 for off in (-0.01, 0.01))
    codebook = torch.cat([functional.pad(signs, (0, 1), value=last) for last in (under, over)])
    lengths = 1 + torch.rand(2000, 1, generator=generator) * 2.0**-7
    x = functional.pad(signs[torch.arange(2000) % 60] * lengths, (0, 1), value=2.0)
    return x, torch.cat([codebook, -codebook])


# by the short products of the instruction sets that they deceive
ROUNDING = (
    pytest.param(aligned_rounding(), ("amx", "avx512_bf16"), id="bfloat16"),
    pytest.param(aligned_integers(), ("avx2_int16",), id="int16"),
)

ADVERSARIES = (
    pytest.param(two_far_clusters(), "euclidean", id="two-far-clusters"),
    pytest.param(nearly_orthogonal(), "dot", id="nearly-orthogonal"),
    pytest.param(nearly_parallel(), "cosine", id="nearly-parallel"),
)


@pytest.mark.parametrize(("inputs", "metric"), ADVERSARIES)
def test_certificate_catches_what_float32_cannot_tell(inputs, metric):
    x, codebook = inputs
    fast = search(x, codebook, metric, "fast")[0]
    assert testing.wrong_codes(x, codebook, fast, metric).any(), "the adversary does not bite"
    exact = search(x, codebook, metric)[0]
    assert not testing.wrong_codes(x, codebook, exact, metric).any()


@pytest.mark.parametrize(("inputs", "deceived"), ROUNDING)
def test_certificate_catches_what_short_products_cannot_tell(inputs, deceived):
    x, codebook = inputs
    if torch.ops.fastvq_native.capability() in deceived:
        fast = search(x, codebook, "euclidean", "fast")[0]
        assert testing.wrong_codes(x, codebook, fast).any(), "the adversary does not bite"
    for metric in METRICS:
        exact = search(x, codebook, metric)[0]
        assert not testing.wrong_codes(x, codebook, exact, metric).any(), metric


def test_scores_are_counted():
    x, codebook = testing.clustered(3000, 200, 32)
    before = torch.ops.fastvq_native.search_counts()
    search(x, codebook)
    scored, certified, left, scanned = (torch.ops.fastvq_native.search_counts() - before).tolist()
    assert (scored, left, scanned) == (3000, 0, 0)
    assert 2900 <= certified <= 3000


@pytest.mark.parametrize("exponent", [-140, -60, 0, 60, 120])
def test_exact_at_every_scale(exponent):
    x, codebook = testing.gaussian(200, 70, 12, seed=3)
    scale = 2.0**exponent
    indices, _ = search(x * scale, codebook * scale)
    assert torch.equal(indices, search(x, codebook)[0]) or exponent == -140
    assert not testing.wrong_codes(x * scale, codebook * scale, indices).any()


def test_rows_are_independent_of_their_batch():
    # batches of a few rows are compared outright, larger ones are scored first
    x, codebook = testing.gaussian(70, 130, 20, seed=4)
    indices, distances = search(x, codebook)
    for n in (1, 2, 15, 16, 17, 31, 32, 33, 65):
        some = search(x[:n], codebook)
        assert torch.equal(some[0], indices[:n])
        assert torch.equal(some[1], distances[:n])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 2, 1), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_any_strides_give_the_same_answers(dtype, order):
    x = torch.randn(3, 37, 2, 19).to(dtype)
    codebook = torch.randn(2, 50, 19).to(dtype)
    strided = x.permute(order).contiguous().permute([order.index(i) for i in range(4)])
    every_other = torch.randn(3, 37, 2, 38).to(dtype)
    every_other[..., ::2] = x
    ops = torch.ops.fastvq_native
    indices, distances = ops.nearest(x, codebook, "euclidean", "exact")
    quantized, loss, _ = ops.quantize(x, codebook, indices)
    counts, sums = ops.statistics(x, indices, 50, None)
    for view in (strided, every_other[..., ::2]):
        again = ops.nearest(view, codebook.mT.contiguous().mT, "euclidean", "exact")
        assert torch.equal(again[0], indices)
        assert torch.equal(again[1], distances)
        other = ops.quantize(view, codebook, indices)
        assert torch.equal(other[0], quantized)
        assert other[0].stride() == torch.empty_like(view).stride()
        # sums of the same numbers in another order
        torch.testing.assert_close(other[1], loss, rtol=1e-6, atol=0)
        same = ops.statistics(view, indices, 50, None)
        assert torch.equal(same[0], counts)
        torch.testing.assert_close(same[1], sums, rtol=1e-6, atol=1e-6)


def test_errors_say_what_was_expected_and_what_came():
    ops = torch.ops.fastvq_native
    x, codebook = torch.randn(1, 4, 1, 8), torch.randn(1, 5, 8)
    indices = torch.tensor([0, 1, 7, 2]).view(1, 4, 1)
    with pytest.raises(IndexError, match=r"indices must be in \[-1, K = 5\), got 7"):
        ops.quantize(x, codebook, indices)
    with pytest.raises(IndexError, match=r"got -2"):
        ops.statistics(x, indices.clamp(max=4).sub(2), 5, None)
    with pytest.raises(ValueError, match=r"D = 8, got \[1, 5, 7\]"):
        ops.nearest(x, codebook[..., :7], "euclidean", "exact")
    with pytest.raises(ValueError, match=r"metric must be .* got 'l1'"):
        ops.nearest(x, codebook, "l1", "exact")
    with pytest.raises(ValueError, match="float32, float16, bfloat16 or float64, got Int"):
        ops.nearest(x.int(), codebook, "euclidean", "exact")


class Codes(Dataset):
    """Searches inside the worker process that fetches the item."""

    def __init__(self):
        self.x, self.codebook = testing.gaussian(640, 100, 16, seed=5)

    def __len__(self):
        return 8

    def __getitem__(self, item):
        return search(self.x[item * 80 : (item + 1) * 80], self.codebook)[0]


@pytest.mark.skipif(sys.platform == "win32", reason="fork is POSIX")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_works_in_forked_loader_workers(threads):
    threads(2)
    dataset = Codes()
    # the thread pool of this process is up before it forks
    expected = search(dataset.x, dataset.codebook)[0]
    loader = DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat([batch.flatten() for batch in loader]), expected)
