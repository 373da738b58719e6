"""GTSRB in both layouts: tables, boxes, tracks, and what is said of a folder that is none."""

from pathlib import Path

import numpy as np
import pytest
from conftest import needs_real_images, unpack_real_images
from PIL import Image

from ngf import split
from ngf.datasets import gtsrb
from ngf.errors import InputError

OPTIONS = {"image_size": 8, "roi": False, "partial": True, "download": False}
TRACKS, FRAMES = 3, 4
BOX = "Roi.X1,Roi.Y1,Roi.X2,Roi.Y2"


def picture(file: Path, grey: int, inner: int) -> None:
    """`grey` around and `inner` in the box from 4 to 11."""
    image = Image.new("RGB", (16, 16), (grey,) * 3)
    image.paste((inner,) * 3, (4, 4, 12, 12))
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


def kaggle(root: Path, labels=(0, 2)) -> Path:
    train, test = [f"Width,Height,{BOX},ClassId,Path"], [f"Width,Height,{BOX},ClassId,Path"]
    for label in labels:
        for track in range(TRACKS):
            for frame in range(FRAMES):
                name = f"Train/{label}/{label:05d}_{track:05d}_{frame:05d}.png"
                picture(root / name, 10 * label, 200 + track)
                train.append(f"16,16,4,4,11,11,{label},{name}")
        picture(root / f"Test/{label:05d}.png", 100 + label, 0)
        test.append(f"16,16,4,4,11,11,{label},Test/{label:05d}.png")
    (root / "Train.csv").write_text("\n".join(train) + "\n")
    (root / "Test.csv").write_text("\n".join(test) + "\n")
    return root


def published(root: Path, labels=(0, 2)) -> Path:
    """What torchvision unpacks."""
    head = f"Filename;Width;Height;{BOX.replace(',', ';')};ClassId"
    top, test = root / "gtsrb", [head]
    for label in labels:
        folder, table = top / "GTSRB" / "Training" / f"{label:05d}", [head]
        for track in range(TRACKS):
            for frame in range(FRAMES):
                picture(folder / f"{track:05d}_{frame:05d}.ppm", 10 * label, 200 + track)
                table.append(f"{track:05d}_{frame:05d}.ppm;16;16;4;4;11;11;{label}")
        (folder / f"GT-{label:05d}.csv").write_text("\n".join(table) + "\n")
        picture(top / "GTSRB" / "Final_Test" / "Images" / f"{label:05d}.ppm", 100 + label, 0)
        test.append(f"{label:05d}.ppm;16;16;4;4;11;11;{label}")
    (top / "GT-final_test.csv").write_text("\n".join(test) + "\n")
    return root


@pytest.mark.parametrize("layout", [kaggle, published])
def test_both_layouts_hold_the_same(tmp_path, layout):
    source = gtsrb.load(root=str(layout(tmp_path)), **OPTIONS)
    assert len(source.classes) == 43
    assert not source.flip
    assert source.x_train_NHWC.shape == (2 * TRACKS * FRAMES, 8, 8, 3)
    assert source.y_train_N.tolist() == [0] * 12 + [2] * 12
    assert source.y_test_N.tolist() == [0, 2]
    assert source.track_N is not None
    assert source.track_N.tolist() == np.repeat(np.arange(6), FRAMES).tolist()
    assert source.x_train_NHWC[0, 0, 0, 0] == 0
    assert source.x_train_NHWC[12, 0, 0, 0] == 20


def test_the_box_is_cut_out(tmp_path):
    source = gtsrb.load(root=str(kaggle(tmp_path)), **{**OPTIONS, "roi": True})
    assert (source.x_train_NHWC[:FRAMES] == 200).all()
    assert (source.x_train_NHWC[-1] == 202).all()
    assert (source.x_test_NHWC == 0).all()


def test_missing_images_are_counted_and_named(tmp_path):
    root = kaggle(tmp_path)
    with pytest.raises(InputError, match=r"names 24 training images, GTSRB has 39209; .*partial"):
        gtsrb.load(root=str(root), **{**OPTIONS, "partial": False})
    (root / "Train" / "2" / "00002_00001_00000.png").unlink()
    said = r"1 of 24 training images are missing, the first is .*00002_00001_00000\.png"
    with pytest.raises(InputError, match=said):
        gtsrb.load(root=str(root), **{**OPTIONS, "partial": False})
    assert len(gtsrb.load(root=str(root), **OPTIONS).y_train_N) == 23


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("Train.csv", "a,b\n1,2\n", r"Train\.csv is not one of GTSRB's tables"),
        ("Train.csv", f"{BOX},ClassId,Path\n1,1,2,2,43,x.png\n", "class 43 of x.png"),
        ("Test.csv", None, r"no file .*Test\.csv: GTSRB's tables say which image is what"),
    ],
)
def test_tables_that_are_none_are_named(tmp_path, name, content, said):
    file = kaggle(tmp_path) / name
    file.write_text(content) if content else file.unlink()
    with pytest.raises(InputError, match=said):
        gtsrb.load(root=str(tmp_path), **OPTIONS)


def test_a_damaged_image_is_named(tmp_path):
    file = kaggle(tmp_path) / "Train" / "2" / "00002_00001_00000.png"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(InputError, match=r"cannot read image .*00002_00001_00000\.png"):
        gtsrb.load(root=str(tmp_path), **OPTIONS)


def test_a_folder_without_it_says_what_to_put_there(tmp_path):
    with pytest.raises(InputError, match=r"no GTSRB at .*: put Kaggle's Train\.csv"):
        gtsrb.load(root=str(tmp_path), **OPTIONS)


def test_no_track_is_on_both_sides():
    y_N = np.repeat([0, 1, 2], 60)
    track_N = np.arange(180) // 12
    taken, left = split.by_track(y_N, track_N, 0.1, ("a", "b", "c"), seed=0)
    assert np.bincount(y_N[taken]).tolist() == [6, 6, 6]
    assert np.bincount(y_N[left]).tolist() == [48, 48, 48]
    assert not set(track_N[taken]) & set(track_N[left])
    again, _ = split.by_track(y_N, track_N, 0.1, ("a", "b", "c"), seed=0)
    other, _ = split.by_track(y_N, track_N, 0.1, ("a", "b", "c"), seed=1)
    assert np.array_equal(taken, again)
    assert not np.array_equal(taken, other)
    more, less = split.by_track(y_N, track_N, 0.25, ("a", "b", "c"), seed=0)
    assert (len(more), len(less)) == (45, 180 - 3 * 24)
    assert not set(track_N[more]) & set(track_N[less])


def test_a_class_needs_tracks_to_train_on():
    y_N, track_N = np.repeat([0, 1], 20), np.repeat([0, 1, 2, 3, 4, 5], [10, 10, 5, 5, 5, 5])
    with pytest.raises(InputError, match=r"class 'a' has 2 tracks of images and 15 are to be set"):
        split.by_track(y_N, track_N, 0.75, ("a", "b"), seed=0)


@needs_real_images
def test_real_images(tmp_path):
    unpack_real_images("gtsrb-sample", tmp_path)
    with pytest.raises(InputError, match=r"38779 of 39209 training images are missing"):
        gtsrb.load(root=str(tmp_path), **{**OPTIONS, "partial": False})
    source = gtsrb.load(root=str(tmp_path), **{**OPTIONS, "image_size": 32, "roi": True})
    assert source.x_train_NHWC.shape == (430, 32, 32, 3)
    assert np.bincount(source.y_train_N).tolist() == [10] * 43
    assert len(source.y_test_N) == 430
