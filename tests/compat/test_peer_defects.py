"""What users of other libraries met: each defect with its thread, and the answer here.

Where it costs little the library's own answer is shown beside ours; a version that has mended it
skips that half, and nothing else.
"""

from __future__ import annotations

import pickle
import warnings

import pytest
import torch
from torch import nn

import fastvq


def lucidrains(kind, *args, **options):
    import vector_quantize_pytorch as library

    return getattr(library, kind)(*args, **options)


def pair(dim, codes, **options):
    """lucidrains' VectorQuantize and ours, with one codebook."""
    theirs = lucidrains("VectorQuantize", dim, codes.shape[0], **options).eval()
    theirs._codebook.embed.copy_(codes)
    ours = fastvq.VectorQuantizer(dim, codes.shape[0], start=fastvq.Given(codes)).eval()
    return theirs, ours


def exact(x, codes):
    return torch.cdist(x.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist")


def peer_still(broken, thread):
    if not broken:
        pytest.skip(f"this version of the library has mended {thread}")


def raises(call, *kinds):
    """Whether it ends in one of these errors; a warning on the way is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except kinds:
        return True
    return False


# precision


def test_autocast_moves_no_code():
    # lucidrains/vector-quantize-pytorch#229, #116, #145: float32 only where autocast is CUDA's
    codes, x = torch.randn(512, 16), torch.randn(4, 500, 16)
    theirs, ours = pair(16, codes)
    truth = exact(x.flatten(0, 1), codes).argmin(-1).view(4, 500)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x).indices, truth)
        peer_still(not torch.equal(theirs(x)[1], truth), "autocast on the CPU")


@pytest.mark.parametrize("offset", [10, 100])
def test_sixteen_bits_far_from_the_origin_get_the_nearest_code(offset):
    # lucidrains/vector-quantize-pytorch#114, pytorch/pytorch#57690: distances in 16 bits
    codes = (torch.randn(256, 64) + offset).bfloat16().float()
    x = (torch.randn(500, 64) + offset).bfloat16()
    _, ours = pair(64, codes)
    distances = exact(x, codes)
    chosen = distances.gather(1, ours(x).indices.unsqueeze(1))[:, 0]
    assert (chosen <= distances.amin(1) * (1 + 1e-5)).all()
    plain = (x.square().sum(1, keepdim=True) - 2 * x @ codes.bfloat16().t()
             + codes.bfloat16().square().sum(1)).argmin(1)  # fmt: skip
    assert (plain != distances.argmin(1)).double().mean() > 0.05


def test_codes_nearer_than_a_ten_thousandth_are_told_apart():
    # lucidrains/vector-quantize-pytorch: its cdist clamps squares at 1e-8
    codes = torch.tensor([[0.5], [0.50005], [0.7]])
    theirs, ours = pair(1, codes)
    x = torch.tensor([[[0.500045]]])
    assert ours(x).indices.item() == 1
    peer_still(theirs(x)[1].item() != 1, "the clamp of distances")


def test_sixteen_bit_fsq_reaches_every_code():
    # lucidrains/vector-quantize-pytorch#114: bfloat16 holds no integer above 256 but even ones
    grid = torch.linspace(-4, 4, 401).bfloat16()
    digits = fastvq.FSQ([8]).encode(grid.unsqueeze(1))
    middles = [grid[digits == digit].median() for digit in range(8)]
    x = torch.cartesian_prod(*[torch.stack(middles)] * 4)
    assert x.dtype == torch.bfloat16
    assert fastvq.FSQ([8, 8, 8, 8]).encode(x).unique().numel() == 8**4


# NaN and stability


def test_one_bad_token_spoils_no_code():
    # a one-hot product multiplies NaN by zero: every code of lucidrains' becomes NaN in one step
    codes, x = torch.randn(8, 4), torch.randn(1, 20, 4)
    theirs, ours = pair(4, codes)
    x[0, 3] = torch.nan
    ours.train()(x)
    assert ours.codebook.isfinite().all()
    theirs.train()(x)
    peer_still(bool(theirs._codebook.embed.isnan().all()), "the one-hot product")


def test_a_code_without_vectors_divides_by_nothing():
    # rosinality/vq-vae-2-pytorch PR#72, nadavbh12/VQ-VAE#11: counts that decay to zero
    vq = fastvq.VectorQuantizer(
        2,
        3,
        start=fastvq.Given(torch.tensor([[0.0, 0.0], [50.0, 50.0], [90.0, 90.0]])),
        learning=fastvq.EMA(decay=0.0),
        revival=None,
    )
    for _ in range(3):
        vq(torch.randn(1, 9, 2))
    assert vq.codebook[1:].tolist() == [[50, 50], [90, 90]]
    assert vq.codebook.isfinite().all()


# start, revival


def test_kmeans_of_few_vectors_makes_no_duplicates():
    # lucidrains/vector-quantize-pytorch: 17 unique codes of 64 from 17 vectors
    x = torch.randn(1, 17, 4)
    ours = fastvq.VectorQuantizer(4, 64)
    ours.book.begin(x.unsqueeze(2), None)
    assert ours.codebook.unique(dim=0).shape[0] == 64
    theirs = lucidrains("VectorQuantize", 4, 64, kmeans_init=True)
    theirs._codebook.init_embed_(x)
    peer_still(theirs.codebook.unique(dim=0).shape[0] < 64, "k-means of few vectors")


def test_kmeans_waits_for_training():
    # lucidrains/vector-quantize-pytorch: the first call starts the codes, also in eval
    x = torch.randn(1, 40, 4)
    ours = fastvq.VectorQuantizer(4, 8).eval()
    before = ours.codebook.clone()
    ours(x)
    assert torch.equal(ours.codebook, before)
    theirs = lucidrains("VectorQuantize", 4, 8, kmeans_init=True).eval()
    theirs(x)
    peer_still(bool(theirs._codebook.initted), "k-means in eval")


def test_the_step_after_kmeans_keeps_its_centres():
    # lucidrains/vector-quantize-pytorch#66: counts that disagree with the sums undo the start
    middles = torch.tensor([[-9.0, 0.0], [9.0, 0.0], [0.0, 9.0], [0.0, -9.0]])
    x = (middles.unsqueeze(1) + 0.1 * torch.randn(4, 50, 2)).flatten(0, 1).unsqueeze(0)
    vq = fastvq.VectorQuantizer(2, 4)
    for _ in range(3):
        vq(x)
    means = x.view(4, 50, 2).mean(1)
    assert exact(means, vq.codebook).amin(1).max() < 1e-3


def test_a_revived_code_outlives_the_next_step():
    # espnet/espnet PR#6284: EnCodec's revived code is overwritten by the average it had before
    codes = torch.cat([torch.randn(3, 2), torch.tensor([[900.0, 900.0]])])
    vq = fastvq.VectorQuantizer(2, 4, start=fastvq.Given(codes), learning=fastvq.EMA(decay=0.0))
    vq(torch.randn(1, 100, 2))
    revived = vq.codebook[3].clone()
    assert revived.abs().max() < 10
    vq(torch.randn(1, 100, 2))
    assert vq.codebook[3].abs().max() < 10


def test_expiry_means_the_same_at_every_size_of_batch():
    # jishengpeng/WavTokenizer#82: an absolute threshold of 2 cannot suit 10 vectors for 100 codes
    codes = torch.randn(100, 2)
    vq = fastvq.VectorQuantizer(2, 100, start=fastvq.Given(codes), revival=fastvq.Revival(0.1))
    # each code is used in every tenth step, and a moving average of 1 in 10 is below 2
    for step in range(50):
        vq(codes[step % 10 :: 10].unsqueeze(0))
    assert vq.book.cluster_size.max() < 2
    assert torch.equal(vq.codebook, codes)


# masks, layouts


MASKED = {
    "codebook_dim": {"codebook_dim": 4},
    "heads": {"heads": 2},
    "image": {"channel_dim": 1},
}


@pytest.mark.parametrize("options", MASKED.values(), ids=MASKED)
def test_masks_go_with_everything(options):
    # lucidrains/vector-quantize-pytorch#149, #62, #188, #228
    vq = fastvq.VectorQuantizer(8, 16, **options)
    image = "channel_dim" in options
    shape = (2, 3, 5) if image else (2, 15)
    x = torch.randn(2, 8, 3, 5) if image else torch.randn(2, 15, 8)
    mask = torch.rand(shape) < 0.6
    quantized, indices, loss = vq(x, mask=mask)
    assert loss.isfinite()
    assert (indices[~mask] == -1).all()
    assert (indices[mask] >= 0).all()
    last = quantized.movedim(1, -1) if image else quantized
    assert (last[~mask] == 0).all()
    theirs_options = {"accept_image_fmap": True} if image else dict(options)
    if "heads" in theirs_options:
        theirs_options |= {"separate_codebook_per_head": True, "codebook_dim": 4}
    theirs = lucidrains("VectorQuantize", 8, 16, **theirs_options)
    peer_still(raises(lambda: theirs(x, mask=mask), AssertionError, RuntimeError), "masks")


def test_a_mask_of_all_leaves_the_cosine_loss_alone():
    # lucidrains/vector-quantize-pytorch: masked, it is measured against the unnormalized input
    x, mask = torch.randn(2, 30, 8), torch.ones(2, 30, dtype=torch.bool)
    vq = fastvq.VectorQuantizer(8, 16, metric="cosine", start=fastvq.Given(torch.randn(16, 8)))
    torch.testing.assert_close(vq.eval()(x, mask).loss, vq(x).loss)
    theirs = lucidrains("VectorQuantize", 8, 16, use_cosine_sim=True, freeze_codebook=True)
    gap = (theirs(x)[2] - theirs(x, mask=mask)[2]).abs().item()
    peer_still(gap > 0.1, "the masked cosine loss")


def test_residual_quantizers_take_images():
    # lucidrains/vector-quantize-pytorch#39, #233: raises unless channels, height and width agree
    x = torch.randn(2, 8, 3, 5)
    quantized, indices, _ = fastvq.ResidualVQ(8, 16, 3, channel_dim=1)(x)
    assert quantized.shape == x.shape
    assert indices.shape == (2, 3, 5, 3)
    theirs = lucidrains(
        "ResidualVQ", dim=8, codebook_size=16, num_quantizers=3, accept_image_fmap=True
    )
    peer_still(raises(lambda: theirs(x), RuntimeError), "images in ResidualVQ")


def test_padding_decodes_to_zeros():
    # lucidrains/vector-quantize-pytorch: -1 is the last code
    codes = torch.randn(8, 4)
    theirs, ours = pair(4, codes)
    padding = torch.tensor([[-1]])
    assert torch.equal(ours.decode(padding), torch.zeros(1, 1, 4))
    peer_still(torch.equal(theirs.get_output_from_indices(padding)[0, 0], codes[-1]), "index -1")


# losses and gradients


def test_beta_is_on_the_commitment():
    # CompVis/taming-transformers#46, #57, huggingface/diffusers#8226: on the codebook, by default
    codes, x = torch.randn(8, 4), torch.randn(1, 4, 3, 3)
    ours = fastvq.VectorQuantizer(
        4, 8, start=fastvq.Given(codes), learning=fastvq.Gradient(), channel_dim=1
    )
    leaf = x.clone().requires_grad_()
    out = ours(leaf)
    out.loss.backward()
    pull = 2 * (leaf.detach() - out.quantized.detach()) / x.numel()
    torch.testing.assert_close(leaf.grad, 0.25 * pull)
    towards = torch.zeros(8, 4).index_add(
        0, out.indices.flatten(), -pull.movedim(1, -1).flatten(0, 2)
    )
    torch.testing.assert_close(ours.book.vectors.grad[0], towards)
    from diffusers.models.autoencoders.vae import VectorQuantizer

    theirs, leaf = VectorQuantizer(8, 4, beta=0.25), x.clone().requires_grad_()
    theirs.embedding.weight.data.copy_(codes)
    theirs(leaf)[1].backward()
    peer_still(torch.allclose(leaf.grad, pull, rtol=1e-4), "the place of beta")


def test_every_residual_level_pulls_the_encoder():
    # facebookresearch/encodec#25: no gradient of commitment beyond the first level;
    # descript-audio-codec#107: none is detached, so that levels pull at one another's codes
    codes = torch.randn(3, 16, 4) * torch.tensor([1.0, 0.5, 0.25]).view(3, 1, 1)
    rvq = fastvq.ResidualVQ(4, 16, 3, start=fastvq.Given(codes), commitment_weight=1.0).eval()
    x = torch.randn(1, 20, 4).requires_grad_()
    _, indices, loss = rvq(x)
    loss.backward()
    rest, pulls = x.detach(), torch.zeros(1, 20, 4)
    for level in range(3):
        rest = rest - codes[level][indices[..., level]]
        pulls += 2 * rest / rest.numel()
    torch.testing.assert_close(x.grad, pulls)


def test_cosine_losses_are_of_unit_vectors():
    # descript-audio-codec#114: searched on the sphere, its losses are of vectors of any length
    vq = fastvq.VectorQuantizer(4, 8, metric="cosine", start=fastvq.Given(torch.randn(8, 4))).eval()
    x = torch.randn(1, 20, 4)
    torch.testing.assert_close(vq(100 * x).loss, vq(x).loss)


def test_fewer_levels_also_in_training():
    # descript-audio-codec#40, #106: in training the number that is asked for is passed over
    x = torch.randn(2, 16, 5)
    rvq = fastvq.ResidualVQ(16, 8, 3, start=fastvq.Given(torch.randn(3, 8, 16)), channel_dim=1)
    assert rvq.training
    assert rvq.encode(x, levels=1).shape == (2, 5, 1)
    from types import SimpleNamespace

    from transformers.models.dac.modeling_dac import DacResidualVectorQuantizer

    config = SimpleNamespace(
        n_codebooks=3, codebook_size=8, codebook_dim=4, hidden_size=16, quantizer_dropout=0
    )
    theirs = DacResidualVectorQuantizer(config).train()
    peer_still(theirs(x, n_quantizers=1)[1].shape[1] == 3, "n_quantizers in training")


def test_the_codes_of_before_the_step_make_the_output():
    # zalandoresearch/pytorch-vq-vae#5: the average moves first, and the output is of other codes
    codes, x = torch.randn(8, 4), torch.randn(1, 40, 4)
    vq = fastvq.VectorQuantizer(4, 8, start=fastvq.Given(codes), revival=None)
    quantized, indices, _ = vq(x)
    assert torch.equal(quantized, codes[indices])
    assert not torch.equal(vq.codebook, codes)


def test_accumulated_batches_are_one_batch():
    # lucidrains/vector-quantize-pytorch#221: an update in each forward of one optimizer step
    codes, x = torch.randn(8, 4), torch.randn(2, 40, 4)
    whole = fastvq.VectorQuantizer(4, 8, start=fastvq.Given(codes), revival=None)
    parts = fastvq.VectorQuantizer(
        4, 8, start=fastvq.Given(codes), revival=None, learning=fastvq.EMA(every=2)
    )
    whole(x)
    for part in x:
        parts(part)
    torch.testing.assert_close(parts.codebook, whole.codebook)


# memory, compilation, copies


def test_a_grid_of_four_billion_codes_is_not_built():
    # lucidrains/vector-quantize-pytorch PR#137: FSQ([4] * 16) asks for 34 GB of implicit codes
    fsq = fastvq.FSQ([4] * 16)
    assert fsq.codebook_size == 4**16
    x = torch.randn(3, 16)
    assert torch.equal(fsq.decode(fsq.encode(x)), fsq(x).quantized)


def test_the_forward_marks_no_tensor_of_the_module():
    # lucidrains/vector-quantize-pytorch 1.32.0: requires_grad_() on a buffer that all calls share
    ours = fastvq.VectorQuantizer(4, 8)
    ours(torch.randn(1, 9, 4).requires_grad_())
    assert not any(tensor.requires_grad for tensor in ours.buffers())
    theirs = lucidrains("VectorQuantize", 4, 8)
    theirs(torch.randn(1, 9, 4).requires_grad_())
    peer_still(any(tensor.requires_grad for tensor in theirs.buffers()), "the shared zero")


def test_spherical_bits_can_be_pickled():
    # lucidrains/vector-quantize-pytorch: LFQ(spherical=True) holds a lambda
    ours, x = fastvq.BSQ(16), torch.randn(5, 4)
    assert torch.equal(pickle.loads(pickle.dumps(ours))(x).indices, ours(x).indices)
    theirs = lucidrains("LFQ", codebook_size=16, spherical=True)
    peer_still(
        raises(lambda: pickle.dumps(theirs), AttributeError, pickle.PicklingError),
        "the lambda of LFQ",
    )


def test_exports_in_eval():
    # lucidrains/vector-quantize-pytorch#8: a branch on the buffer that says whether k-means has run
    x = torch.randn(1, 9, 4)
    ours = fastvq.VectorQuantizer(4, 8).eval()
    assert torch.equal(torch.export.export(ours, (x,)).module()(x)[1], ours(x).indices)
    theirs = lucidrains("VectorQuantize", 4, 8, kmeans_init=True).eval()
    peer_still(raises(lambda: torch.export.export(theirs, (x,)), RuntimeError), "the export")


def test_codes_stay_a_buffer_in_float32():
    # espnet/espnet PR#6437: DeepSpeed's master copy in 16 bits overwrites codes that are parameters
    vq = fastvq.VectorQuantizer(4, 8).to(torch.bfloat16)
    assert vq.book.vectors.dtype == torch.float32
    assert not any(isinstance(tensor, nn.Parameter) for tensor in (vq.book.vectors,))
    assert list(vq.parameters()) == []
