"""The CUDA kernels run on the CPU: their sources as they are, over an emulated grid of threads."""

import ctypes
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import fastvq
from fastvq import _backends, testing
from fastvq.ops import nearest, quantize, statistics

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="needs g++ and ucontext"
)
ROOT = Path(__file__).parents[2]
EMULATION = Path(__file__).parent / "cuda"
OPS = ("nearest", "quantize", "quantize_backward", "statistics")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NARROW = [shape for shape in testing.SHAPES if shape[2] <= 16]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    """The kernels and their schemas, registered for the CPU as ``fastvq_emulated``."""
    folder = tmp_path_factory.mktemp("cuda")
    for source in [*(ROOT / "csrc" / "cuda").iterdir(), *EMULATION.iterdir()]:
        shutil.copy(source, folder)  # the emulated headers take the place of those they emulate
    torch_folder = Path(torch.__file__).parent
    command = [
        "g++", "-x", "c++", "-c", "-O1", "-std=c++20", "-fPIC", "-fvisibility=hidden",
        "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
        "-Dfastvq_native=fastvq_emulated", "-DTORCH_TARGET_VERSION=0x020a000000000000",
        f"-I{folder}", f"-I{ROOT / 'csrc'}", "-isystem", torch_folder / "include",
        "-isystem", sysconfig.get_path("include"),
    ]  # fmt: skip
    sources = [folder / f"{name}.cu" for name in ("nearest", "quantize", "statistics")]
    sources += [folder / "order.cpp", ROOT / "csrc" / "registration.cpp"]
    objects = [folder / f"{source.stem}.o" for source in sources]
    workers = [
        subprocess.Popen([*command, source, "-o", target], stderr=subprocess.PIPE, text=True)
        for source, target in zip(sources, objects, strict=True)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors[-3000:]
    path = folder / "emulated.so"
    linked = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    subprocess.run(["g++", "-shared", *objects, "-o", path, *linked], check=True)
    torch.ops.load_library(path)
    return ctypes.CDLL(str(path))


@pytest.fixture(autouse=True)
def _kernels(library, monkeypatch):
    """Makes the emulated kernels the native backend."""
    for op in OPS:
        launch = getattr(torch.ops.fastvq_emulated, op).default
        row = _backends.Row(lambda launch=launch: launch, lambda device: None, None)
        monkeypatch.setitem(_backends._table, (op, "native"), row)
    _backends._load.cache_clear()
    library.fastvq_shuffle(0)
    with fastvq.use_backend("native"):
        yield
    _backends._load.cache_clear()


def by_reference(function, *inputs, **options):
    with fastvq.use_backend("reference"):
        return function(*inputs, **options)


def search(x, codebook):
    """``nearest`` of x ``[N, D]``, held to all that it promises."""
    result = nearest(x, codebook)
    testing.assert_nearest(x, codebook, result)
    return result


@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("case", testing.NEAREST_CASES, ids=lambda case: case.name)
@pytest.mark.usefixtures("poisoned_empty")
def test_search_on_hard_inputs(case, channels):
    x, codebook = (t[:, :channels] for t in case.make())
    result = search(x, codebook)
    if case.name != "one_ulp_apart":
        # float32 may not tell those apart, and the promise leaves it that room
        assert torch.equal(result.indices, by_reference(nearest, x, codebook).indices)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", NARROW, ids=str)
def test_search_of_odd_shapes_and_dtypes(shape, dtype):
    x, codebook = testing.gaussian(*shape, dtype=dtype)
    search(x, codebook)
    search(x.float(), codebook)
    search(x, codebook.double())


# tiles hold 512 codes at D = 16 and 8192 at D = 1; a thread takes 2 or 4 rows, and the emulated
# device 7 blocks of 128 threads
@pytest.mark.parametrize(
    ("rows", "codes", "channels"),
    [(5, 7, 16), (5, 8, 16), (5, 9, 9), (40, 511, 16), (40, 512, 16), (40, 513, 16),
     (1800, 520, 16), (3600, 20, 4), (4, 8193, 1)],
)  # fmt: skip
def test_search_at_the_edges_of_tiles(rows, codes, channels):
    x, codebook = testing.gaussian(rows, codes, channels)
    x[-1] = codebook[-1]
    assert search(x, codebook).indices[-1] == codes - 1


def test_equal_codes_go_to_the_lowest_index_across_groups_and_tiles():
    x, codebook = testing.clustered(200, 300, 16)
    copies = codebook.repeat(4, 1)
    assert torch.equal(search(x, copies).indices, search(x, codebook).indices)


def test_distances_that_float32_cannot_square():
    generator = torch.Generator().manual_seed(0)
    codebook = 1 + torch.randint(-999, 999, (50, 1), generator=generator) * 2.0**-22
    tiny = torch.randn(50, 1, generator=generator) * 1e-30
    for x, codes in ((tiny, tiny.flip(0) * 1.5), (tiny.neg(), tiny * 0.5), (codebook, codebook)):
        result = search(x, codes)
        assert torch.equal(result.indices, by_reference(nearest, x, codes).indices)
        # and the lowest of equal codes there too
        assert torch.equal(search(x, codes.repeat(2, 1)).indices, result.indices)


@pytest.mark.parametrize(("channels", "metric"), [(17, "euclidean"), (4, "cosine"), (4, "dot")])
def test_search_says_what_it_does_not_take(channels, metric):
    x, codebook = testing.gaussian(3, 4, channels)
    text = rf"at most 16 channels and the metric 'euclidean', got {channels} channels and '{metric}"
    with pytest.raises(RuntimeError, match=text):
        nearest(x, codebook, metric=metric)


def views(x):
    """The values of x ``[B, M, H, D]`` at other strides."""
    every_other = x.new_full((*x.shape[:3], 2 * x.shape[3]), torch.nan)
    every_other[..., ::2] = x
    yield every_other[..., ::2]
    for order in ((0, 3, 2, 1), (3, 2, 1, 0), (2, 0, 3, 1)):
        yield x.permute(order).contiguous().permute([order.index(i) for i in range(4)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides_give_the_same_answers(dtype):
    x, codebook = torch.randn(3, 37, 2, 10).to(dtype), torch.randn(2, 50, 10).to(dtype)
    ops, factor = torch.ops.fastvq_emulated, torch.tensor(0.3)
    factor = factor.double() if dtype == torch.float64 else factor
    indices, distances = ops.nearest(x, codebook, "euclidean", "exact")
    quantized, loss, scale = ops.quantize(x, codebook, indices)
    grad = ops.quantize_backward(x, factor, x, codebook, indices)
    counts, sums = ops.statistics(x, indices, 50, codebook)
    codes = codebook.mT.contiguous().mT
    chosen = indices.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    for view in views(x):
        again = ops.nearest(view, codes, "euclidean", "exact")
        assert torch.equal(again[0], indices)
        assert torch.equal(again[1], distances)
        other = ops.quantize(view, codes, chosen)
        assert torch.equal(other[0], quantized)
        assert other[0].stride() == torch.empty_like(view).stride()
        # sums of the same numbers in another order
        torch.testing.assert_close(other[1], loss, rtol=1e-6, atol=0)
        assert torch.equal(other[2], scale)
        assert torch.equal(ops.quantize_backward(view, factor, view, codes, chosen), grad)
        same = ops.statistics(view, chosen, 50, codes)
        assert torch.equal(same[0], counts)
        assert torch.equal(same[1], sums)


def test_rows_further_apart_than_32_bits_reach(tmp_path):
    apart = 2**30 + 3
    # a sparse file: its empty pages take no room
    path = str(tmp_path / "sparse")
    memory = torch.from_file(path, shared=True, size=4 * apart, dtype=torch.float32)
    dense, codebook = testing.gaussian(4, 20, 3)
    for strides in ((apart, 1), (1, apart)):
        x = memory.as_strided((4, 3), strides)
        x.copy_(dense)
        indices = search(dense, codebook).indices
        assert torch.equal(search(x, codebook).indices, indices)
        rows, chosen = x.view(1, 4, 1, 3), indices.view(1, 4, 1)
        _, sums = torch.ops.fastvq_emulated.statistics(rows, chosen, 20, None)
        assert torch.equal(sums[0], statistics(dense, indices, 20).sums)
        grad = torch.ops.fastvq_emulated.quantize_backward(
            dense.view(1, 4, 1, 3), torch.tensor(1.0), rows, codebook[None], chosen
        )
        assert torch.equal(grad.view(4, 3), dense + (dense - codebook[indices]))


def check_statistics(x, indices, num_codes, codebook=None):
    actual = statistics(x, indices, num_codes, codebook=codebook)
    expected = by_reference(statistics, x.double(), indices, num_codes, codebook=codebook)
    terms = x.double() if codebook is None else x.double() - codebook.double()[indices.clamp_min(0)]
    sizes = by_reference(statistics, terms.abs(), indices, num_codes).sums
    assert torch.equal(actual.counts.double(), expected.counts)
    # n terms summed in float32 in any order: (n + 1) units of half an ulp of the magnitudes
    unit = 2.0**-53 if actual.sums.dtype == torch.float64 else 2.0**-24
    testing.assert_within(actual.sums, expected.sums, (expected.counts.max() + 2) * unit * sizes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*testing.SHAPES, (150, 9, 16)], ids=str)
@pytest.mark.usefixtures("poisoned_empty")
def test_statistics_of_odd_shapes_and_dtypes(shape, dtype):
    x, codebook = testing.gaussian(*shape, dtype=dtype)
    indices = torch.randint(-1, shape[1], (shape[0],))
    check_statistics(x, indices, shape[1])
    check_statistics(x, indices, shape[1], codebook.float())
    check_statistics(x, indices, shape[1], codebook.double())


# chunks are of 128 sorted rows
@pytest.mark.parametrize("counts", [[128], [129], [127, 1], [128, 128], [1, 127, 0, 300], [0, 700]])
@pytest.mark.usefixtures("poisoned_empty")
def test_statistics_at_the_edges_of_chunks(counts):
    indices = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    indices = indices[torch.randperm(len(indices))]
    x = torch.randn(len(indices), 5)
    check_statistics(x, indices, len(counts) + 1)
    x[::50, 2] = torch.nan
    x[7::90] = torch.inf
    check_statistics(x, indices, len(counts) + 1)


def test_statistics_of_heads_are_those_of_each_alone():
    x, indices = torch.randn(300, 3, 8), torch.randint(-1, 5, (300, 3))
    x[17, 1, 3] = torch.nan
    together = statistics(x, indices, (3, 5))
    for h in range(3):
        alone = statistics(x[:, h], indices[:, h], 5)
        assert torch.equal(together.counts[h], alone.counts)
        assert torch.equal(together.sums[h], alone.sums)


def test_indices_out_of_range_spoil_their_own_rows():
    x, codebook = testing.gaussian(6, 4, 3)
    indices = torch.tensor([0, 4, -2, -1, 3, 2**40])
    counts, sums = statistics(x, indices, 4)
    assert counts.tolist() == [1, 0, 0, 1]
    assert torch.equal(sums[3], x[4])
    quantized, loss, _ = quantize(x, codebook, indices)
    assert quantized.isnan().all(-1).tolist() == [False, True, True, False, False, True]
    assert loss.isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", testing.SHAPES, ids=str)
@pytest.mark.usefixtures("poisoned_empty")
def test_quantize_and_its_gradients(shape, dtype):
    results = []
    for run in (lambda f, *a: f(*a), by_reference):
        torch.manual_seed(0)
        x, codebook = testing.gaussian(*shape, dtype=dtype)
        x, codebook = x.requires_grad_(), codebook.float().requires_grad_()
        indices = torch.randint(-1, shape[1], (shape[0],))

        def step(x, codebook, indices):
            out = quantize(x, codebook, indices)
            loss = (out.quantized.float() * torch.randn(shape[0], shape[2])).sum()
            (loss + 2 * out.commitment_loss + 3 * out.codebook_loss).backward()
            return out

        out = run(step, x, codebook, indices)
        results.append([*(t.detach() for t in out), x.grad, codebook.grad])
    rounding = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}.get(dtype, 2e-6)
    for native, reference in zip(*results, strict=True):
        torch.testing.assert_close(native, reference, rtol=rounding, atol=rounding)
    assert torch.equal(results[0][0], results[1][0])


def test_the_loss_of_more_blocks_than_one_has_threads():
    x, codebook = testing.gaussian(1100, 3, 256)
    indices = torch.randint(-1, 3, (1100,))
    loss = quantize(x, codebook, indices).commitment_loss
    torch.testing.assert_close(loss, by_reference(quantize, x, codebook, indices).commitment_loss)


@pytest.mark.parametrize("channels_first", [False, True])
def test_no_order_of_blocks_and_threads_changes_a_bit(library, channels_first):
    x, codebook = torch.randn(2, 1100, 2, 6), torch.randn(2, 70, 6)
    x[1, 40, 0, 2] = torch.nan
    if channels_first:
        x = x.transpose(1, 3).contiguous().transpose(1, 3)
    ops, factor = torch.ops.fastvq_emulated, torch.tensor(0.3)
    results = []
    for seed in range(3):
        library.fastvq_shuffle(seed)
        indices, distances = ops.nearest(x, codebook, "euclidean", "exact")
        results.append(
            [
                indices,
                distances,
                *ops.quantize(x.nan_to_num(), codebook, indices),
                ops.quantize_backward(x, factor, x, codebook, indices),
                *ops.statistics(x, indices % 9, 70, codebook),
            ]
        )
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
