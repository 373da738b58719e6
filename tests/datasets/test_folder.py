import numpy as np
import pytest
from PIL import Image

from ngf.datasets import folder
from ngf.errors import InputError

OPTIONS = {"image_size": 8, "flip": True, "test_fraction": 0.25, "seed": 0}


def tree(root, split="", classes=("cat", "dog"), count=8, mode="RGB"):
    for label, name in enumerate(classes):
        place = root / split / name
        place.mkdir(parents=True)
        for index in range(count):
            picture = Image.new("RGB", (10 + index, 12), (20 * index, 40 * label, 0))
            picture.convert(mode).save(place / f"{index}.{'jpg' if mode == 'CMYK' else 'png'}")
    return root


def test_flat_tree_is_split_by_class(tmp_path):
    source = folder.load(root=str(tree(tmp_path)), **OPTIONS)
    assert source.classes == ("cat", "dog")
    assert source.x_train_NHWC.shape == (12, 8, 8, 3)
    assert source.x_test_NHWC.shape == (4, 8, 8, 3)
    assert np.bincount(source.y_test_N).tolist() == [2, 2]
    assert source.flip


@pytest.mark.parametrize("name", ["test", "val"])
def test_given_test_split_is_kept(tmp_path, name):
    tree(tmp_path, "train")
    tree(tmp_path, name, count=3)
    source = folder.load(root=str(tmp_path), **OPTIONS)
    assert len(source.y_train_N) == 16
    assert len(source.y_test_N) == 6


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    source = folder.load(root=str(tree(tmp_path, mode=mode)), **OPTIONS)
    assert source.x_train_NHWC.shape == (12, 8, 8, 3)


def test_bad_trees_are_named(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        folder.load(root=str(tmp_path / "nothing"), **OPTIONS)
    with pytest.raises(InputError, match="at least two; it has 1"):
        folder.load(root=str(tree(tmp_path / "one", classes=("cat",))), **OPTIONS)
    lonely = tree(tmp_path / "lonely", "train")
    with pytest.raises(InputError, match="has train/ but neither test/ nor val/"):
        folder.load(root=str(lonely), **OPTIONS)
    tree(lonely, "test", classes=("cat", "bird"))
    with pytest.raises(InputError, match="they differ in bird, dog"):
        folder.load(root=str(lonely), **OPTIONS)


def test_truncated_image_and_empty_class_are_named(tmp_path):
    tree(tmp_path)
    victim = tmp_path / "dog" / "3.png"
    victim.write_bytes(victim.read_bytes()[:40])
    with pytest.raises(InputError, match=r"cannot read image .*dog/3.png"):
        folder.load(root=str(tmp_path), **OPTIONS)
    for file in (tmp_path / "dog").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"dog holds no image"):
        folder.load(root=str(tmp_path), **OPTIONS)
