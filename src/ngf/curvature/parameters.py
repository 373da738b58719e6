"""Which parameters the curvature is over."""

from torch import nn


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Those that training moves, by name, in the model's order."""
    return {
        name: p for name, p in model.named_parameters() if p.requires_grad and p.is_floating_point()
    }
