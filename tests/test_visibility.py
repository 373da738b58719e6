"""PSNR and SSIM against their definitions, window by window."""

import math

import numpy as np
import pytest
import torch

from ngf.visibility import sheet, ssim, visibility


def images(size: int, count: int = 2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, size, size, 3), generator=generator, dtype=torch.uint8)


def defined_ssim(x_HW: np.ndarray, z_HW: np.ndarray) -> float:
    """The formula of Wang et al. 2004 at every place where a window fits."""
    size = min(11, *x_HW.shape)
    place = np.arange(size) - (size - 1) / 2
    window = np.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = []
    for top in range(x_HW.shape[0] - size + 1):
        for left in range(x_HW.shape[1] - size + 1):
            x = x_HW[top : top + size, left : left + size]
            z = z_HW[top : top + size, left : left + size]
            mx, mz = (window * x).sum(), (window * z).sum()
            vx, vz = (window * (x - mx) ** 2).sum(), (window * (z - mz) ** 2).sum()
            cov = (window * (x - mx) * (z - mz)).sum()
            found.append(
                (2 * mx * mz + c1) * (2 * cov + c2) / ((mx**2 + mz**2 + c1) * (vx + vz + c2))
            )
    return float(np.mean(found))


@pytest.mark.parametrize("size", [6, 11, 15])
def test_ssim_is_its_definition(size):
    x, z = images(size), images(size, seed=1)
    z = (0.7 * x.float() + 0.3 * z.float()).round().to(torch.uint8)
    got = ssim(x.permute(0, 3, 1, 2).double(), z.permute(0, 3, 1, 2).double())
    for n in range(len(x)):
        expected = [
            defined_ssim(x[n, ..., c].numpy() * 1.0, z[n, ..., c].numpy()) for c in range(3)
        ]
        assert got[n].item() == pytest.approx(np.mean(expected), abs=1e-9)


def test_a_change_of_known_size():
    x = torch.full((4, 12, 12, 3), 100, dtype=torch.uint8)
    z = x.clone()
    z[:, :6] += 20
    found = visibility(x, z)
    assert found["psnr"] == pytest.approx(10 * math.log10(255**2 / 200))
    assert found["largest"] == 20
    assert found["n"] == 4
    assert 0 < found["ssim"] < 1


def test_nothing_changed_is_perfectly_alike():
    x = images(12)
    assert visibility(x, x.clone()) == {"psnr": None, "ssim": 1.0, "largest": 0, "n": 2}


def test_darker_counts_as_brighter_does():
    assert visibility(images(12), images(12).clamp(min=40) - 40)["largest"] == 40


def test_the_sheet_shows_image_trigger_and_tenfold_difference():
    x = torch.full((2, 32, 32, 3), 100, dtype=torch.uint8)
    z = x.clone()
    z[:, :, :, 0] += 5
    z[:, :, :, 1] -= 20
    pixels = np.asarray(sheet(x, z))
    assert pixels.shape == (3 * 96, 2 * 96, 3)
    assert pixels[0, 0].tolist() == [100, 100, 100]
    assert pixels[96, 0].tolist() == [105, 80, 100]
    assert pixels[192, 0].tolist() == [178, 0, 128]
