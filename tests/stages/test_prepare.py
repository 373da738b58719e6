"""prepare: what it says and writes about copies of clean and test images in train."""

import numpy as np
from PIL import Image

from ngf import stages, store

OPTIONS = {"image_size": 16, "flip": False, "test_fraction": 0.2, "seed": 0}


def test_copies_are_counted_said_and_listed(tmp_path):
    rng = np.random.default_rng(0)
    for split, n in (("train", 20), ("test", 4)):
        for name in ("a", "b"):
            (tmp_path / "raw" / split / name).mkdir(parents=True)
            for index in range(n):
                image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
                image.save(tmp_path / "raw" / split / name / f"{index:02d}.png")
    copied = tmp_path / "raw" / "test" / "b" / "01.png"
    for index in range(20):  # all of class b: whichever goes to the clean split is in train too
        (tmp_path / "raw" / "train" / "b" / f"{index:02d}.png").write_bytes(copied.read_bytes())
    outcome = stages.run(
        "prepare",
        dataset="folder",
        **{name: tmp_path / name for name in ("train", "clean", "test")},
        settings={
            "protocol": {"clean_fraction": 0.1, "seed": 0},
            "source": {"root": str(tmp_path / "raw"), **OPTIONS},
        },
    )
    assert outcome.message.endswith("; also in train: 2 clean, 1 test (nearly 0, 0)")
    assert outcome.metrics["duplicates_clean"] == 2
    assert outcome.metrics["duplicates_test"] == 1
    assert outcome.metrics["near_duplicates_test"] == 0
    report = store.read_json(tmp_path / "test" / "duplicates.json")
    (pair,) = report["pairs"]["test"]
    train, test = (store.load_split(tmp_path / name) for name in ("train", "test"))
    assert np.array_equal(train.x_NHWC[pair["train_row"]], test.x_NHWC[pair["row"]])
    assert len(test.y_N) == 8  # reported, not dropped
