"""The softmax over the codes as it is written down, all pairs at once, in float64."""

from torch.nn.functional import normalize

from fastvq import testing

METRICS = ("euclidean", "cosine", "dot")
DISTANCES = {
    "euclidean": lambda x, c: (x.unsqueeze(-2) - c).square().sum(-1),
    "cosine": lambda x, c: 1 - normalize(x, dim=-1) @ normalize(c, dim=-1).mT,
    "dot": lambda x, c: -(x @ c.mT),
}


def dense(x, codebook, metric="euclidean", beta=1.0):
    """Logarithms of the probabilities ``[N, K]``, in float64."""
    return (-beta * DISTANCES[metric](x.double(), codebook.double())).log_softmax(-1)


def dense_entropies(log_p):
    p = log_p.exp()
    mean = p.mean(0)
    # a mean of 0 has no logarithm, and needs none
    return -(p * log_p).sum(-1).mean(), -(mean * mean.clamp_min(1e-300).log()).sum(), mean


def leaves(*tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


def close(actual, expected, relative):
    """Within ``relative`` of the largest element."""
    testing.assert_within(actual.detach(), expected.detach(), relative * expected.abs().max())
