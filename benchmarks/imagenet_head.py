"""One natural-gradient step for a head of ImageNet's size: seconds, iterations, residual, memory.

    OMP_NUM_THREADS=2 python -m benchmarks.imagenet_head

1,000 classes, 2,048 features and a bias, 12,800 images in float32. The features are like those that
a ResNet-50 pools: non-negative, one prototype a class, noise whose spectrum decays; the head is
sure of most images. The penalty is eta diag(F0) + damping, the damping in units of F's mean entry.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from ngf.bench.memory import peak_resident
from ngf.fisher.curvature import with_bias
from ngf.fisher.solve import choose, conjugate_gradients
from ngf.fisher.true import TrueFisher


def features(n: int, d: int, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """ReLU features [N, D] with a decaying spectrum, and a head's weights [C, D] that fit them."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    decay_D = torch.arange(1, d + 1).pow(-0.5)
    mixing_DD = decay_D[:, None] * torch.linalg.qr(normal(d, d))[0] * 4
    prototypes_CD = normal(classes, d) @ mixing_DD
    labels_N = torch.arange(n) % classes
    h_ND = (prototypes_CD[labels_N] + 0.7 * normal(n, d) @ mixing_DD - 0.1).relu_()
    weight_CD = prototypes_CD.relu() - prototypes_CD.relu().mean(0)
    return h_ND, weight_CD / weight_CD.norm(dim=1, keepdim=True)


def confident(logits_NC: Tensor, mean_top: float) -> Tensor:
    """Predictions [N, C] whose mean largest probability is `mean_top`: the logits' scale is set."""
    low, high = 0.0, 1e3
    for _ in range(30):
        middle = (low + high) / 2
        top = (logits_NC * middle).softmax(1).amax(1).mean()
        low, high = (middle, high) if top < mean_top else (low, middle)
    return (logits_NC * high).softmax(1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=12_800)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--eta", type=float, default=0.1)
    parser.add_argument("--damping", type=float, default=1.0, help="in units of F's mean entry")
    parser.add_argument("--tolerance", type=float)
    parser.add_argument("--mean-top", type=float, default=0.9, help="mean largest probability")
    given = parser.parse_args()

    generator = torch.Generator().manual_seed(0)
    h_ND, weight_CD = features(given.images, given.features, given.classes, generator)
    p_NC = confident(h_ND @ weight_CD.T, given.mean_top)
    h_NE = with_bias(h_ND, bias=True)
    # Towards what the defender wants: the gradient of other labels' cross-entropy.
    wanted_N = torch.randint(given.classes, (given.images,), generator=generator)
    gradient_CE = p_NC.T @ h_NE
    gradient_CE.index_add_(0, wanted_N, -h_NE)
    gradient_CE /= given.images

    started, worked = time.perf_counter(), time.process_time()
    fisher = TrueFisher(h_NE, p_NC)
    diagonal_CE = fisher.diagonal()
    penalty_CE = given.eta * diagonal_CE + given.damping * diagonal_CE.mean()
    method = choose(fisher, penalty_CE)
    solution = conjugate_gradients(fisher, gradient_CE, penalty_CE, tolerance=given.tolerance)
    seconds = time.perf_counter() - started
    worked = time.process_time() - worked
    peak = peak_resident() / 2**30
    print(
        f"{torch.get_num_threads()} threads, mean top {given.mean_top:g}, eta {given.eta:g}, "
        f"damping {given.damping:g}: {method}, {seconds:.1f} s ({worked:.0f} s of all cores), "
        f"{solution.iterations} iterations, residual {solution.residual:.1e}, peak {peak:.2f} GB"
    )


if __name__ == "__main__":
    main()
