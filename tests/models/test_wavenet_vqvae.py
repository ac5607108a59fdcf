# SPDX-License-Identifier: Apache-2.0
"""The speech model: what its decoder is told, its loss, its samples."""

import copy
import math

import pytest
import torch

from fastvq import priors
from fastvq.models import WaveNetVQVAE, WaveNetVQVAEConfig

from .conftest import QUANTIZERS

SMALL = {
    "hidden_channels": 8,
    "strides": (2, 2),
    "levels": 16,
    "num_speakers": 3,
    "wavenet_channels": 6,
    "wavenet_gate_channels": 6,
    "wavenet_skip_channels": 8,
    "wavenet_layers": 3,
    "wavenet_cycle": 2,
}
SPEAKERS = torch.tensor([0, 1, 2, 2])


def small(quantizer="vq", **options) -> WaveNetVQVAE:
    chosen = {"quantizer": quantizer.split("-")[0]} | QUANTIZERS[quantizer]
    return WaveNetVQVAE(WaveNetVQVAEConfig(**(SMALL | chosen | options)))


def sound(length=24):
    return torch.randint(16, (4, 1, length)) / 15


def listening(model):
    """The model with a decoder that hears its conditions; an untrained one hardly does."""
    with torch.no_grad():
        model.decoder.logits.weight.mul_(20)
        for layer in model.decoder.layers:
            layer.condition.weight.mul_(20)
            layer.context.weight.mul_(20)
    return model


@pytest.mark.parametrize("encoder_input", ["samples", "spectrum"])
def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(quantizer, encoder_input):
    model = small(quantizer, residual_blocks=1, residual_channels=4, encoder_input=encoder_input)
    with torch.no_grad():
        # all codes of an untrained "fsq" are zero, from which the context learns nothing
        model.encoder.layers[-1].weight.mul_(30)
    model(sound(), SPEAKERS)  # starts the codebook
    model(sound(), SPEAKERS).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("encoder_input", ["samples", "spectrum"])
def test_shapes(quantizer, encoder_input):
    model = small(quantizer, encoder_input=encoder_input)
    groups = () if model.config.codebooks == 1 else (model.config.codebooks,)
    x = sound()
    out = model(x, SPEAKERS)
    assert out.indices.shape == (4, 6, *groups)
    assert out.parameters.shape == (4, 16, 24)
    assert model.grid_shapes(24) == ((6, *groups),)
    assert model.decode(model.encode(x), SPEAKERS).shape == x.shape


def test_the_loss_is_the_sum_of_the_decoders_the_quantizers_and_the_spectrums():
    model = small(spectrum_weight=0.5)
    x = sound()
    model(x, SPEAKERS)
    model.eval()
    out = model(x, SPEAKERS)
    quantized, indices, quantizer_loss = model.quantizer(model.encoder(x))
    context = model.context(quantized).repeat_interleave(4, 2)
    nll = model.decoder.nll((x * 15).round().long()[:, 0], SPEAKERS, context)
    torch.testing.assert_close(out.reconstruction_loss, nll.mean())
    torch.testing.assert_close(out.quantizer_loss, quantizer_loss)
    spectrum_loss = 0.5 * model.spectrum.loss(model.context(quantized), SPEAKERS, x)
    torch.testing.assert_close(out.spectrum_loss, spectrum_loss)
    torch.testing.assert_close(out.loss, nll.mean() + quantizer_loss + spectrum_loss)
    bits = model.bits_per_dim(x, SPEAKERS, 12.0)
    torch.testing.assert_close(bits.reconstruction, nll.mean(1) / math.log(2))
    torch.testing.assert_close(bits.codes, torch.full((4,), 0.5))
    nominal = model.bits_per_dim(x, SPEAKERS).codes
    torch.testing.assert_close(nominal, torch.full((4,), 6 * 4 / 24))


def test_without_a_weight_nothing_is_asked_of_the_spectrum():
    model = small(spectrum_weight=0.0)
    assert model.spectrum is None
    out = model(sound(), SPEAKERS)
    assert out.spectrum_loss == 0
    torch.testing.assert_close(out.loss, out.reconstruction_loss + out.quantizer_loss)


def test_no_logit_sees_its_own_sample_or_a_later_one():
    model = small().eval()
    codes = model.encode(sound())
    with torch.no_grad():
        quantized = model.quantizer.decode(codes)
        x = sound()
        features = model.context(quantized)
        before = model._logits(x, features, SPEAKERS)
        x[..., 10:] = sound()[..., 10:]
        after = model._logits(x, features, SPEAKERS)
    assert torch.equal(before[..., :11], after[..., :11])
    assert not torch.equal(before[..., 11:], after[..., 11:])


def test_each_sample_is_told_of_the_code_it_lies_in():
    model = small(kernel_size=1).eval()
    features, x = torch.randn(1, 8, 6), sound()[:1]
    moved = features.clone()
    moved[..., 3] += 1
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.dilated.weight[..., :-1] = 0  # or later samples were told by those before them
        before, after = (model._logits(x, some, SPEAKERS[:1]) for some in (features, moved))
    differs = (before != after).any(1)[0]
    assert differs.nonzero().flatten().tolist() == [12, 13, 14, 15]


def test_the_decoder_hears_a_part_of_each_example_in_training_and_all_in_eval():
    model = small("fsq", heard_codes=2)
    # every sample tells where it is
    x = (torch.arange(24) % 16 / 15).expand(4, 1, -1)
    features = torch.arange(6.0).expand(4, 8, -1)
    starts = set()
    for _ in range(40):
        samples, about = model._heard(x, features)
        assert samples.shape == (4, 1, 8)
        assert about.shape == (4, 8, 2)
        first = about[:, :, :1]
        assert torch.equal(about, torch.cat([first, first + 1], 2).expand_as(about))
        wanted = (4 * first[:, :1] + torch.arange(8)) % 16 / 15
        assert torch.equal(samples, wanted)
        starts |= set(first[:, 0, 0].tolist())
    assert starts == {0, 1, 2, 3, 4}
    out = model(sound(), SPEAKERS)
    assert out.indices.shape == (4, 6)
    assert out.parameters.shape == (4, 16, 8)
    model.eval()
    x = sound()
    out = model(x, SPEAKERS)
    assert out.parameters.shape == (4, 16, 24)
    bits = model.bits_per_dim(x, SPEAKERS).reconstruction.mean()
    torch.testing.assert_close(bits * math.log(2), out.reconstruction_loss)


def test_a_part_as_long_as_the_example_is_the_example():
    model, x, features = small("fsq", heard_codes=7), sound(), torch.randn(4, 8, 6)
    heard, about = model._heard(x, features)
    assert heard is x
    assert about is features


def test_what_is_decoded_depends_on_seed_speaker_and_codes_alone():
    model = small("fsq")
    codes = model.encode(sound())

    def decoded(seed=0, codes=codes, speakers=SPEAKERS):
        return model.decode(codes, speakers, generator=torch.Generator().manual_seed(seed))

    first = decoded()
    assert torch.equal(first, decoded())
    assert not torch.equal(first, decoded(seed=1))
    listening(model)
    first = decoded()
    assert not torch.equal(first, decoded(speakers=(SPEAKERS + 1) % 3))
    assert not torch.equal(first, decoded(codes=(codes + 30) % 60))
    model.likelihood.digits(first)  # every sample is a level


def test_the_cache_gives_the_samples_of_full_recomputation():
    model = listening(small("fsq")).double()
    codes = model.encode(sound(16).double())
    found = model.decode(codes, SPEAKERS, generator=torch.Generator().manual_seed(2))
    uniforms = torch.rand(4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    context = model.context(model.quantizer.decode(codes))
    plain = priors.sample_from(model.decoder, uniforms, SPEAKERS, context=context, cached=False)
    assert torch.equal((found[:, 0] * 15).round().long(), plain)


def test_saved_and_loaded_it_is_the_same_model(quantizer, tmp_path):
    model = small(quantizer)
    x = sound()
    model(x, SPEAKERS)
    model.eval().save_pretrained(tmp_path)
    loaded = WaveNetVQVAE.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded.encode(x), model.encode(x))
    first, second = (
        m.reconstruct(x, SPEAKERS, generator=torch.Generator().manual_seed(5))
        for m in (model, loaded)
    )
    assert torch.equal(first, second)


def test_decoding_and_measuring_change_nothing():
    model = small()
    model(sound(), SPEAKERS)
    before = copy.deepcopy(model.state_dict())
    model.bits_per_dim(sound(), SPEAKERS)
    model.reconstruct(sound(), SPEAKERS)
    assert model.decoder.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_it_learns_who_says_what():
    """Two speakers, two words, sound that neither of them tells alone."""
    model = small(num_speakers=2, codebook_size=4, wavenet_channels=12, wavenet_skip_channels=12)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    speakers, words = torch.randint(2, (2, 16))
    levels = (4 * words + 8 * speakers)[:, None, None].expand(-1, -1, 16)
    noise = torch.randint(4, levels.shape)
    x = (levels + noise) / 15
    for _ in range(60):
        optimizer.zero_grad()
        out = model(x, speakers)
        out.loss.backward()
        optimizer.step()
    # the noise alone is log 4 = 1.39 nats; uniform 2.77. Without the speaker half of log 2 more
    # could be had from the samples before
    assert out.reconstruction_loss < 1.6


def test_without_speakers():
    model = small(num_speakers=None)
    assert model(sound()).loss.shape == ()
    assert model.decode(torch.zeros(2, 3, dtype=torch.int64)).shape == (2, 1, 12)
    with pytest.raises(ValueError, match="labels must be None"):
        model(sound(), SPEAKERS)


def test_the_defaults_are_the_papers_encoder():
    model = WaveNetVQVAE(WaveNetVQVAEConfig(wavenet_layers=1))
    assert model.config.stride == (64,)
    strided = [m for m in model.encoder.modules() if isinstance(m, torch.nn.Conv1d)][:6]
    assert [(m.kernel_size, m.stride) for m in strided] == [((4,), (2,))] * 6


def test_refused_inputs():
    model = small()
    with pytest.raises(ValueError, match=r"multiple of the stride 4, got \[22\]"):
        model(sound(22), SPEAKERS)
    with pytest.raises(ValueError, match=r"C = 1 and 1 axes after it, got \[4, 24\]"):
        model.encode(sound()[:, 0])
    with pytest.raises(ValueError, match=r"multiples of 1/15 in \[0, 1\], got 0.5"):
        model(torch.full((4, 1, 24), 0.5), SPEAKERS)
    with pytest.raises(ValueError, match="labels must be given"):
        model(sound())
    with pytest.raises(ValueError, match=r"labels must be in \[0, num_classes = 3\), got 3"):
        model.decode(torch.zeros(1, 6, dtype=torch.int64), torch.tensor([3]))
    with pytest.raises(ValueError, match="indices must have 2 dimensions, batch and grid, got"):
        model.decode(torch.zeros(1, 6, 2, dtype=torch.int64), torch.tensor([0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_dims": 2}, "spatial_dims must be 1 for speech, got 2"),
        ({"in_channels": 2}, "in_channels must be 1 for speech, got 2"),
        ({"levels": 1}, r"levels must be in \[2, 65536\], got 1"),
        ({"strides": (1,)}, "strides must be one or more ints >= 2"),
        ({"heard_codes": 0}, "heard_codes must be at least 1, got 0"),
        ({"num_speakers": 0}, "num_classes must be at least 1, got 0"),
        ({"wavenet_layers": 0}, "layers must be at least 1, got 0"),
    ],
)
def test_refused_configs(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)
