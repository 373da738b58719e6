import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import needs_real_images, unpack_real_images

from ngf.datasets import cifar10
from ngf.errors import InputError


def write_batches(root: Path, n: int = 20) -> Path:
    """Batches as published: protocol 2, channel-first rows of 3072 bytes."""
    folder = root / cifar10.FOLDER
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*cifar10.TRAIN, "test_batch"]:
        data = rng.integers(0, 256, (n, 3072), np.uint8)
        content = {"data": data, "labels": [i % 10 for i in range(n)], "batch_label": name}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def load(root: Path):
    return cifar10.load(root=str(root), download=False)


def test_published_layout(tmp_path):
    folder = write_batches(tmp_path)
    source = load(tmp_path)
    assert source.x_train_NHWC.shape == (100, 32, 32, 3)
    assert source.x_test_NHWC.shape == (20, 32, 32, 3)
    raw = pickle.loads((folder / "data_batch_2").read_bytes())["data"][3]
    assert np.array_equal(source.x_train_NHWC[23].transpose(2, 0, 1).ravel(), raw)
    assert source.y_train_N[23] == 3


def test_missing_folder_and_file_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no folder .*cifar-10-batches-py"):
        load(tmp_path)
    (write_batches(tmp_path) / "data_batch_4").unlink()
    with pytest.raises(InputError, match=r"no file .*data_batch_4"):
        load(tmp_path)


def test_truncated_batch_is_named(tmp_path):
    file = write_batches(tmp_path) / "data_batch_1"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"data_batch_1 is not a CIFAR-10 batch"):
        load(tmp_path)


class Attack:
    def __reduce__(self):
        return (os.system, ("touch executed",))


class Crafted:
    """Pickles as an array whose eight bytes each would be the address of a Python object."""

    def __reduce__(self):
        made, _, _ = np.zeros(1).__reduce__()
        return made, (np.ndarray, (0,), b"b"), (1, (2,), Objects(), False, b"A" * 16)


class Objects:
    def __reduce__(self):
        return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)


def test_an_array_of_addresses_is_refused(tmp_path):
    file = write_batches(tmp_path) / "data_batch_1"
    file.write_bytes(pickle.dumps({"data": Crafted(), "labels": [0, 1]}))
    with pytest.raises(InputError, match=r"an array of numpy's O8 is no plain data"):
        cifar10.load(root=str(tmp_path), download=False)


@pytest.mark.parametrize("protocol", [2, 4])
def test_labels_and_protocols_of_any_kind_are_read(tmp_path, protocol):
    folder = write_batches(tmp_path)
    expected = cifar10.load(root=str(tmp_path), download=False)
    for name in [*cifar10.TRAIN, "test_batch"]:
        content = pickle.loads((folder / name).read_bytes())
        content["labels"] = np.array(content["labels"])
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    again = cifar10.load(root=str(tmp_path), download=False)
    assert np.array_equal(again.x_train_NHWC, expected.x_train_NHWC)
    assert np.array_equal(again.y_test_N, expected.y_test_N)


def test_a_batch_never_executes_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write_batches(tmp_path) / "data_batch_1"
    file.write_bytes(pickle.dumps({"data": Attack(), "labels": []}, protocol=2))
    with pytest.raises(InputError, match=r"is not a CIFAR-10 batch: it asks for posix.system"):
        load(tmp_path)
    assert not Path("executed").exists()


def test_labels_beyond_the_classes_are_named(tmp_path):
    file = write_batches(tmp_path) / "test_batch"
    content = pickle.loads(file.read_bytes())
    content["labels"][0] = 10
    file.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(InputError, match="has labels 0 to 10; CIFAR-10 has 0 to 9"):
        load(tmp_path)


@pytest.mark.slow
@needs_real_images
def test_real_cifar10(tmp_path):
    unpack_real_images("cifar10", tmp_path)
    source = load(tmp_path)
    assert source.x_train_NHWC.shape == (50_000, 32, 32, 3)
    assert np.bincount(source.y_train_N).tolist() == [5000] * 10
    assert np.bincount(source.y_test_N).tolist() == [1000] * 10
    # The published mean of the training images, to four digits.
    mean = source.x_train_NHWC.mean((0, 1, 2)) / 255
    assert np.allclose(mean, [0.4914, 0.4822, 0.4465], atol=1e-3)
