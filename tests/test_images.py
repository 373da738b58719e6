"""Images that are encoded, overlaid or streamed read like the array that they stand for."""

import numpy as np
import pytest
import torch
from conftest import colour_split
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ngf import images, metrics, stages, store
from ngf.attacks import Trigger, badnets
from ngf.datasets import Split
from ngf.errors import InputError

SIZE = 72


def pictures(n: int, seed: int = 0) -> np.ndarray:
    """Smooth ones, as photographs are."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (n, 4, 4, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(x).resize((SIZE, SIZE), 2)) for x in small])


def as_encoded(x_NHWC: np.ndarray) -> images.Encoded:
    codes = (images.encode(Image.fromarray(x_HWC)) for x_HWC in x_NHWC)
    return images.encoded(codes, x_NHWC.shape[1:3])


@pytest.fixture(scope="module")
def stored() -> images.Encoded:
    return as_encoded(pictures(12))


def rows_of(n: int) -> st.SearchStrategy:
    arrays = hnp.arrays(np.int64, st.integers(0, 9), elements=st.integers(0, n - 1))
    masks = hnp.arrays(bool, n)
    return arrays | masks | st.slices(n)


@settings(max_examples=40, deadline=None)
@given(rows=rows_of(12))
def test_encoded_images_read_like_an_array(stored, rows):
    whole = stored[:]
    assert whole.shape == stored.shape == (12, SIZE, SIZE, 3)
    assert np.array_equal(stored[rows], whole[rows])
    # A photograph loses a grey level or two.
    assert np.abs(whole.astype(int) - pictures(12)).mean() < 1.5


@settings(max_examples=40, deadline=None)
@given(rows=rows_of(12), over=st.sets(st.integers(0, 11), min_size=1))
def test_overlaid_images_read_like_an_array(rows, over):
    below, rows_P = pictures(12), np.array(sorted(over))
    above = pictures(len(rows_P), seed=1)
    whole = below.copy()
    whole[rows_P] = above
    got = images.overlaid(below, rows_P, above)
    assert np.array_equal(got[rows], whole[rows])
    assert np.array_equal(got[:], whole)
    assert len(got) == 12


def test_nothing_over_nothing_is_the_array_itself():
    below = pictures(3)
    assert images.overlaid(below, np.zeros(0, np.int64), below[:0]) is below


def test_what_is_replaced_is_not_read():
    class Unreadable:
        shape = (3, SIZE, SIZE, 3)

        def __len__(self) -> int:
            return 3

        def __getitem__(self, rows):
            assert 1 not in np.arange(3)[rows]
            return pictures(3)[rows]

    got = images.overlaid(Unreadable(), np.array([1]), pictures(1, seed=1))
    assert np.array_equal(got[:][1], pictures(1, seed=1)[0])


def test_streamed_batches_are_those_of_the_tensor(stored, monkeypatch):
    here = torch.device("cpu")
    whole = images.on_device(stored, here)
    monkeypatch.setattr(images, "WHOLE", stored[:].nbytes - 1)
    streamed = images.on_device(stored, here)
    assert isinstance(whole, torch.Tensor)
    assert isinstance(streamed, images.Streamed)
    rows_KB = list(torch.randperm(12).split(5)) * 4
    for got, want in zip(
        images.batches_of(streamed, rows_KB), images.batches_of(whole, rows_KB), strict=True
    ):
        assert torch.equal(got, want)
    assert torch.equal(streamed[2:9:3], whole[2:9:3])


def test_reading_ahead_stops_with_the_reader(stored):
    streamed = images.Streamed(stored, torch.device("cpu"))
    first = next(streamed.ahead([torch.arange(3)] * 9))
    assert len(first) == 3


def test_measures_of_streamed_images_are_those_of_the_tensor(model, monkeypatch):
    split = colour_split(96, seed=0)
    poison = badnets.plant(
        split.x_NHWC, split.y_N, 3, target=0, poison_rate=0.1, size=3, margin=0,
        corner="bottom-right", opacity=1.0, seed=0,
    )  # fmt: skip
    whole = torch.tensor(split.x_NHWC)
    streamed = images.Streamed(split.x_NHWC, whole.device)
    y_N = torch.tensor(split.y_N)
    got, want = (
        metrics.measure({"m": model}, x_NHWC, y_N, poison.trigger, 3)
        for x_NHWC in (streamed, whole)
    )
    assert got == want


def encoded_split() -> Split:
    y_N = np.arange(12, dtype=np.int64) % 3
    return Split(as_encoded(pictures(12)), y_N, "d", ("a", "b", "c"), [0.5] * 3, [0.2] * 3, False)


def test_an_encoded_split_comes_back_byte_for_byte(tmp_path):
    split, rows = encoded_split(), np.array([7, 2, 3])
    store.save_split(tmp_path / "split", split, rows)
    back = store.load_split(tmp_path / "split")
    assert np.array_equal(back.x_NHWC[:], split.x_NHWC[rows])
    assert back.y_N.tolist() == split.y_N[rows].tolist()
    assert not (tmp_path / "split" / "x.npy").exists()
    store.save_split(tmp_path / "again", back)
    assert store.digest(tmp_path / "again") == store.digest(tmp_path / "split")


def cut(folder):
    (folder / "x.jpegs").write_bytes((folder / "x.jpegs").read_bytes()[:-1])


def back_and_forth(folder):
    ends = np.load(folder / "ends.npy")
    ends[0], ends[1] = ends[1], ends[0]
    np.save(folder / "ends.npy", ends)


def no_jpeg(folder):
    (folder / "x.jpegs").write_bytes(bytes((folder / "x.jpegs").stat().st_size))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "x.jpegs does not end where ends.npy says"),
        (back_and_forth, "x.jpegs does not end where ends.npy says"),
        (no_jpeg, "image 0 of a split is damaged"),
        (lambda folder: (folder / "ends.npy").unlink(), "no file"),
    ],
)
def test_damage_is_named(tmp_path, damage, said):
    store.save_split(tmp_path / "split", encoded_split())
    damage(tmp_path / "split")
    with pytest.raises(InputError, match=said):
        store.load_split(tmp_path / "split").x_NHWC[:1]


def test_only_jpeg_is_decoded(tmp_path):
    """A prepared split from elsewhere does not reach Pillow's other readers."""
    Image.fromarray(pictures(1)[0]).save(tmp_path / "x.png")
    code = (tmp_path / "x.png").read_bytes()
    with pytest.raises(InputError, match="image 0 of a split is damaged"):
        images.encoded([code], (SIZE, SIZE))[:]


def test_an_image_of_another_size_is_named():
    code = images.encode(Image.fromarray(pictures(1)[0]))
    with pytest.raises(InputError, match=r"image 0 of a split is \(72, 72, 3\), not \(8, 8, 3\)"):
        images.encoded([code], (8, 8))[:]


def test_a_full_disk_is_said(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images.os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"has no room for 1\.0 GiB .*TMPDIR names another"):
        images.scratch((2**30,))


def test_large_images_are_kept_encoded_through_the_stages(tmp_path, numbers):
    """prepare, poison and the overlay: the training split is read, never copied."""
    for label, level in (("dark", 60), ("light", 180)):
        for part, count in (("train", 20), ("test", 4)):
            (tmp_path / "raw" / part / label).mkdir(parents=True)
            for number in range(count):
                grey = Image.new("L", (100, 90), level + number)
                grey.save(tmp_path / "raw" / part / label / f"{number}.png")
    stages.run(
        "prepare",
        settings={
            "protocol": {"clean_fraction": 0.1, "seed": 0},
            "source": {**numbers["datasets"]["folder"], "root": str(tmp_path / "raw"),
                       "image_size": 96},
        },
        dataset="folder",
        **{name: tmp_path / name for name in ("train", "clean", "test")},
    )  # fmt: skip
    train = store.load_split(tmp_path / "train")
    assert isinstance(train.x_NHWC, images.Encoded)
    assert train.x_NHWC.shape == (36, 96, 96, 3)
    assert train.mean == pytest.approx([130 / 255] * 3, abs=0.02)
    stages.run(
        "poison",
        settings={"options": {**numbers["attacks"]["badnets"], "poison_rate": 0.25}},
        train=tmp_path / "train",
        attack="badnets",
        out=tmp_path / "poison",
    )
    planted = store.load_poison(tmp_path / "poison", train)
    assert len(planted.x_PHWC) == 9
    clean_PHWC = torch.from_numpy(train.x_NHWC[planted.rows_P])
    again = planted.trigger.apply(clean_PHWC, torch.from_numpy(train.y_N[planted.rows_P]))
    assert np.array_equal(again.numpy(), planted.x_PHWC)
    assert isinstance(planted.trigger, Trigger)
