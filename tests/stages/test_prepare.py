"""prepare: copies of clean and test images in train, and by what the test split is known."""

import numpy as np
from PIL import Image

from ngf import stages, store

OPTIONS = {"image_size": 16, "flip": False, "test_fraction": 0.2, "seed": 0}


def write_images(root):
    """Noise of two classes, 20 images of each to train on and 4 to test."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 20), ("test", 4)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for index in range(n):
                image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
                image.save(root / split / name / f"{index:02d}.png")


def prepare(root, out, *, clean_fraction):
    out.mkdir(exist_ok=True)
    return stages.run(
        "prepare",
        dataset="folder",
        **{name: out / name for name in ("train", "clean", "test")},
        settings={
            "protocol": {"clean_fraction": clean_fraction, "seed": 0},
            "source": {"root": str(root), **OPTIONS},
        },
    )


def test_copies_are_counted_said_and_listed(tmp_path):
    write_images(tmp_path / "raw")
    copied = tmp_path / "raw" / "test" / "b" / "01.png"
    for index in range(20):  # all of class b: whichever goes to the clean split is in train too
        (tmp_path / "raw" / "train" / "b" / f"{index:02d}.png").write_bytes(copied.read_bytes())
    outcome = prepare(tmp_path / "raw", tmp_path, clean_fraction=0.1)
    assert outcome.message.endswith("; also in train: 2 clean, 1 test (nearly 0, 0)")
    assert outcome.metrics["duplicates_clean"] == 2
    assert outcome.metrics["duplicates_test"] == 1
    assert outcome.metrics["near_duplicates_test"] == 0
    report = store.read_json(tmp_path / "test" / "duplicates.json")
    (pair,) = report["pairs"]["test"]
    train, test = (store.load_split(tmp_path / name) for name in ("train", "test"))
    assert np.array_equal(train.x_NHWC[pair["train_row"]], test.x_NHWC[pair["row"]])
    assert len(test.y_N) == 8  # reported, not dropped


def test_another_share_of_clean_images_leaves_the_test_split_what_it_is(tmp_path):
    """Its card changes, for it holds the mean of the training images; its images do not."""
    write_images(tmp_path / "raw")
    tests = []
    for fraction in (0.1, 0.2):
        prepare(tmp_path / "raw", tmp_path / str(fraction), clean_fraction=fraction)
        tests.append(tmp_path / str(fraction) / "test")
    assert store.digest(tests[0]) != store.digest(tests[1])
    assert store.split_digest(tests[0]) == store.split_digest(tests[1])
