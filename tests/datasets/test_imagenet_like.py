"""Tiny-ImageNet and ImageNet: the published layouts, on small trees and on real images."""

from pathlib import Path

import numpy as np
import pytest
from conftest import needs_real_images, unpack_real_images
from PIL import Image

from ngf.datasets import imagenet, tiny_imagenet
from ngf.errors import InputError

WNIDS = ("n02", "n01")


def picture(file: Path, value: int, size=(64, 64), mode="RGB") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).convert(mode).save(file, quality=95)


def tiny(root: Path, each=500, each_val=50) -> Path:
    top, lines = root / "tiny-imagenet-200", []
    for place, wnid in enumerate(WNIDS):
        for index in range(each):
            mode = "L" if index % 7 == 0 else "RGB"
            picture(top / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", 40 * place, mode=mode)
        for index in range(each_val):
            name = f"val_{len(WNIDS) * index + place}.JPEG"
            picture(top / "val" / "images" / name, 100 + 40 * place)
            lines.append(f"{name}\t{wnid}\t0\t0\t9\t9")
    (top / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (top / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tsalamander\nn03\tfrog\n")
    (top / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return top


def test_tiny_as_published(tmp_path):
    tiny(tmp_path)
    source = tiny_imagenet.load(root=str(tmp_path), partial=False)
    assert source.classes == ("n01 goldfish", "n02 salamander")
    assert source.x_train_NHWC.shape == (1000, 64, 64, 3)
    assert np.bincount(source.y_test_N).tolist() == [50, 50]
    assert source.flip
    for x_NHWC, y_N, dark in (
        (source.x_train_NHWC, source.y_train_N, 40),
        (source.x_test_NHWC, source.y_test_N, 140),
    ):
        assert np.abs(x_NHWC[y_N == 0].astype(int) - dark).max() <= 2
        assert np.abs(x_NHWC[y_N == 1].astype(int) - (dark - 40)).max() <= 2


def test_tiny_with_something_missing_is_said(tmp_path):
    with pytest.raises(InputError, match=r"no Tiny-ImageNet at .*: unpack http"):
        tiny_imagenet.load(root=str(tmp_path), partial=False)
    top = tiny(tmp_path, each=3, each_val=2)
    with pytest.raises(InputError, match="class n01 has 3 training images, Tiny-ImageNet has 500"):
        tiny_imagenet.load(root=str(tmp_path), partial=False)
    assert len(tiny_imagenet.load(root=str(top), partial=True).y_test_N) == 4
    file = top / "val" / "val_annotations.txt"
    file.write_text(file.read_text() + "val_9.JPEG\tn09\t0\t0\t1\t1\n")
    with pytest.raises(InputError, match=r"line 5: class .n09. is not in wnids\.txt"):
        tiny_imagenet.load(root=str(tmp_path), partial=True)
    file.unlink()
    with pytest.raises(InputError, match=r"cannot read .*val_annotations\.txt"):
        tiny_imagenet.load(root=str(tmp_path), partial=True)


def folders(root: Path) -> Path:
    for place, wnid in enumerate(WNIDS):
        for index in range(3):
            size, mode = ((40, 20), (20, 40), (30, 30))[index], ("RGB", "CMYK", "L")[index]
            picture(root / "train" / wnid / f"{index}.JPEG", 60 * place, size, mode)
        picture(root / "val" / wnid / "0.JPEG", 60 * place)
    return root


def test_imagenet_in_folders(tmp_path):
    source = imagenet.load(root=str(folders(tmp_path)), image_size=16, partial=True)
    assert source.classes == ("n01", "n02")
    assert source.x_train_NHWC.shape == (6, 16, 16, 3)
    assert source.y_train_N.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.y_test_N.tolist() == [0, 1]
    assert np.abs(source.x_train_NHWC[:3].astype(int) - 60).max() <= 3


def test_the_middle_is_taken(tmp_path):
    root = folders(tmp_path)
    image = Image.new("RGB", (60, 20), (0, 0, 0))
    image.paste((250, 250, 250), (20, 0, 40, 20))
    image.save(root / "train" / "n01" / "0.JPEG", quality=100)
    source = imagenet.load(root=str(root), image_size=20, partial=True)
    assert source.x_train_NHWC[0, :, 2:-2].min() > 240


def test_imagenet_with_something_missing_is_said(tmp_path):
    with pytest.raises(InputError, match=r"no folder .*train: put ILSVRC 2012 there"):
        imagenet.load(root=str(tmp_path), image_size=16, partial=True)
    root = folders(tmp_path)
    said = "train has 6 images of 2 classes, ImageNet 1281167 of 1000; .*partial takes"
    with pytest.raises(InputError, match=said):
        imagenet.load(root=str(root), image_size=16, partial=False)
    picture(root / "val" / "ILSVRC2012_val_00000001.JPEG", 0)
    with pytest.raises(InputError, match="val holds 1 images that lie in no class folder"):
        imagenet.load(root=str(root), image_size=16, partial=True)
    (root / "val" / "ILSVRC2012_val_00000001.JPEG").unlink()
    picture(root / "val" / "n03" / "0.JPEG", 0)
    with pytest.raises(InputError, match="differ in classes: n03"):
        imagenet.load(root=str(root), image_size=16, partial=True)


@needs_real_images
@pytest.mark.slow
def test_real_tiny_imagenet(tmp_path):
    unpack_real_images("tiny-imagenet-50", tmp_path)
    source = tiny_imagenet.load(root=str(tmp_path / "tiny-imagenet-50"), partial=False)
    assert source.x_train_NHWC.shape == (25_000, 64, 64, 3)
    assert np.bincount(source.y_test_N).tolist() == [50] * 50
    assert all(" " in name for name in source.classes)


@needs_real_images
def test_real_imagenette(tmp_path):
    unpack_real_images("imagenette", tmp_path)
    root = str(tmp_path / "imagenette2-160")
    source = imagenet.load(root=root, image_size=160, partial=True)
    assert source.x_train_NHWC.shape == (1000, 160, 160, 3)
    assert np.bincount(source.y_test_N).tolist() == [40] * 10
