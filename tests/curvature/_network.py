"""A network small enough for its dense Hessian and Fisher, in float64."""

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev
from torch.nn.functional import cross_entropy


def network() -> nn.Sequential:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    )
    return net.double().eval()


def images(n: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_NCHW = torch.randn(n, 1, 4, 4, generator=generator, dtype=torch.float64)
    return x_NCHW, torch.randint(3, (n,), generator=generator)


def logits_at(net, x_NCHW, flat) -> Tensor:
    names = [name for name, _ in net.named_parameters()]
    sizes = [p.numel() for p in net.parameters()]
    shapes = [p.shape for p in net.parameters()]
    parts = [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
    return functional_call(net, dict(zip(names, parts, strict=True)), x_NCHW)


def at(net) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def dense_hessian(net, x_NCHW, y_N) -> Tensor:
    return hessian(lambda flat: cross_entropy(logits_at(net, x_NCHW, flat), y_N))(at(net))


def dense_fisher(net, x_NCHW) -> Tensor:
    """Mean over images and classes of p g g', g the gradient of log p: the definition."""

    def log_p(flat):
        return logits_at(net, x_NCHW, flat).log_softmax(1)

    p_NC, g_NCD = log_p(at(net)).exp(), jacrev(log_p)(at(net))
    return torch.einsum("nc,ncd,nce->de", p_NC, g_NCD, g_NCD) / len(x_NCHW)
