"""What the quantizers of other libraries hold: state dicts, some from the libraries themselves."""

from __future__ import annotations

from types import SimpleNamespace

import torch

K, D, Q = 32, 8, 3
BOOK = "vq.layers.1._codebook."
ROWS = (2, 50)


def lucidrains(kind, **options):
    import vector_quantize_pytorch as library

    return getattr(library, kind)(**options)


def trained(module, width=D):
    for _ in range(3):
        module(torch.randn(*ROWS, width))
    return module.eval()


def transformers_quantizer(name, kind, width=D):
    import importlib

    library = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    config = SimpleNamespace(
        codebook_size=K,
        codebook_dim=D,
        frame_rate=100,
        num_quantizers=Q,
        vector_quantization_hidden_dimension=D,
        hidden_size=width,
    )
    quantizer = getattr(library, kind)(config).eval()
    for name, buffer in quantizer.named_buffers():
        if name.endswith((".embed", ".embed_sum")):
            buffer.normal_()
        if name.endswith((".cluster_size", ".cluster_usage")):
            buffer.uniform_(0.1, 9)
    return quantizer


def counts():
    return torch.rand(K) * 9


def smoothed(codes, counts):
    """The sums whose averages the codes are, by the smoothing of Sonnet and all after it."""
    total = counts.sum()
    return codes * ((counts + 1e-5) / (total + K * 1e-5) * total).unsqueeze(-1)


def rosinality():
    codes, n = torch.randn(K, D), counts()
    return {"embed": codes.t(), "cluster_size": n, "embed_avg": smoothed(codes, n).t()}


def zalando_ema():
    codes, n = torch.randn(K, D), counts()
    return {
        "_embedding.weight": codes,
        "_ema_cluster_size": n,
        "_ema_w": smoothed(codes, n),
    }


def encodec():
    state = {}
    for i in range(Q):
        codes, n = torch.randn(K, D), counts()
        at = f"vq.layers.{i}._codebook."
        state[f"{at}inited"] = torch.ones(1)
        state[f"{at}cluster_size"], state[f"{at}embed"] = n, codes
        state[f"{at}embed_avg"] = smoothed(codes, n)
    return state


def mimi(width=D):
    state = {}
    for i in range(Q):
        at = f"vq.layers.{i}._codebook."
        state[f"{at}_initialized"] = torch.ones(1)
        state[f"{at}cluster_usage"], state[f"{at}embedding_sum"] = counts(), torch.randn(K, D) * 5
    if width != D:
        state["input_proj.weight"] = torch.randn(D, width, 1)
        state["output_proj.weight"] = torch.randn(width, D, 1)
    return state


def dac(width=12, normed=False):
    state = {}
    for i in range(Q):
        at = f"quantizers.{i}."
        state[f"{at}codebook.weight"] = torch.randn(K, D)
        for name, shape in (("in_proj", (D, width, 1)), ("out_proj", (width, D, 1))):
            state[f"{at}{name}.bias"], weight = torch.randn(shape[0]), torch.randn(shape)
            if normed:  # as it starts: of the length that is beside it
                state[f"{at}{name}.weight_g"] = weight.norm(dim=(1, 2), keepdim=True)
            state[f"{at}{name}.weight_v" if normed else f"{at}{name}.weight"] = weight
    return state


def rq_vae():
    state = {}
    for i in range(Q):
        codes, n = torch.randn(K, D), counts()
        state[f"codebooks.{i}.weight"] = torch.cat([codes, torch.zeros(1, D)])
        state[f"codebooks.{i}.cluster_size_ema"] = n
        state[f"codebooks.{i}.embed_ema"] = smoothed(codes, n)
    return state


HEADS = {"heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True}
# what each library holds, and what its checkpoint does not tell
STATES = {
    "lucidrains.VectorQuantize": lambda: trained(
        lucidrains("VectorQuantize", dim=D, codebook_size=K, **HEADS)
    ).state_dict(),
    "lucidrains.ResidualVQ": lambda: trained(
        lucidrains("ResidualVQ", dim=D, codebook_size=K, num_quantizers=Q, codebook_dim=4)
    ).state_dict(),
    "lucidrains.FSQ": lambda: lucidrains("FSQ", levels=[8, 5, 5], dim=D).state_dict(),
    "lucidrains.LFQ": lambda: lucidrains("LFQ", codebook_size=K, dim=D).state_dict(),
    "lucidrains.SimVQ": lambda: lucidrains(
        "SimVQ", dim=D, codebook_size=K, frozen_codebook_dim=6
    ).state_dict(),
    "taming": lambda: {"embedding.weight": torch.randn(K, D)},
    "rosinality": rosinality,
    "zalando": lambda: {"_embedding.weight": torch.randn(K, D)},
    "zalando.EMA": zalando_ema,
    "encodec": encodec,
    "encodec.transformers": lambda: {
        name.replace("vq.layers", "layers").replace("_codebook", "codebook"): tensor
        for name, tensor in encodec().items()
    },
    "mimi": lambda: mimi(width=12),
    "mimi.transformers": lambda: transformers_quantizer(
        "mimi", "MimiResidualVectorQuantizer", 12
    ).state_dict(),
    "dac": lambda: dac(normed=True),
    "dac.transformers": dac,
    "rq-vae-transformer": rq_vae,
}
NOT_TOLD = {"lucidrains.FSQ": {"levels": [8, 5, 5]}}
