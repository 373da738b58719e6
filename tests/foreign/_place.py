"""A folder as a stranger has one: params.yaml, their code, their weights, 16x16 images."""

from pathlib import Path

import torch
from command import ngf
from conftest import CLASSES, ROOT, colour_split
from PIL import Image
from torch import nn

FACTORY = """
from torch import nn
def net(n_classes, norm=nn.BatchNorm2d):
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), norm(8), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n_classes))
def plain(n_classes): return net(n_classes, lambda width: nn.GroupNorm(2, width))
"""
ALL_THE_SAME = ("--least-acc", "0")  # for a network that learned nothing
OWN = ("--mean", "0.3,0.3,0.3", "--std", "0.2,0.2,0.2")


def furnish(folder: Path) -> None:
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (folder / "theirs.py").write_text(FACTORY)
    scope: dict = {}
    exec(FACTORY, scope)
    split = colour_split(60, seed=3)
    x_NCHW = (torch.tensor(split.x_NHWC).permute(0, 3, 1, 2) / 255 - 0.3) / 0.2
    for name in ("net", "plain"):
        torch.manual_seed(0)
        net = learned(scope[name](CLASSES), x_NCHW, torch.tensor(split.y_N))
        torch.save({"state_dict": net.state_dict()}, folder / f"{name}.pt")
    for row, (image, label) in enumerate(zip(split.x_NHWC, split.y_N, strict=True)):
        place = folder / "images" / split.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{row}.png")


def learned(net: nn.Module, x_NCHW: torch.Tensor, y_N: torch.Tensor) -> nn.Module:
    descent = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(40):
        descent.zero_grad()
        nn.functional.cross_entropy(net(x_NCHW), y_N).backward()
        descent.step()
    return net


def purify(*words, model="net.pt", arch="theirs:net", out="out", run=ngf):
    return run(
        "purify", "--model", model, "--arch", arch, "--clean", "images", "--out", out, *words
    )
