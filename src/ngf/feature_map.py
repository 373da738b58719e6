"""A model's features in two dimensions: where clean classes lie, and where triggered images go."""

from __future__ import annotations

import torch
from torch import Tensor

from ngf.hooks import at_inputs
from ngf.models import Classifier, head


@torch.inference_mode()
def features(model: Classifier, x_NCHW: Tensor) -> Tensor:
    """What goes into the classifier layer [N, D] for images in [0, 1]."""
    found: list[Tensor] = []
    with at_inputs({"head": head(model)}, lambda _, __, h_ND: found.append(h_ND.flatten(1))):
        for x_BCHW in x_NCHW.split(256):
            model(x_BCHW)
    return torch.cat(found).float()


def in_two(h_ND: Tensor, *, seed: int) -> list[list[float]]:
    """t-SNE (van der Maaten and Hinton 2008) to [N][2], by scikit-learn from principal components.

    Distances within a group of points mean something, those between far groups do not.
    """
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(h_ND) - 1) / 3)
    plan = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return [[round(float(v), 2) for v in xy] for xy in plan.fit_transform(h_ND.cpu().numpy())]
