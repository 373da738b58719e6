"""Files are read alike by threads, for few, and by processes, for many."""

import numpy as np
import pytest
from PIL import Image

from ngf.datasets import _files
from ngf.errors import InputError


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    made = [tmp_path / f"{number}.png" for number in range(11)]
    for file in made:
        Image.fromarray(rng.integers(0, 256, (9, 8, 3), np.uint8)).save(file)
    return made


def by_processes(monkeypatch):
    monkeypatch.setattr(_files, "AT_ONCE", 4)
    monkeypatch.setattr(_files, "TASK", 3)


@pytest.mark.parametrize("size", [8, 72])
def test_processes_read_what_threads_read(files, size, monkeypatch):
    threads = _files.prepared(files, size)[:]
    by_processes(monkeypatch)
    assert np.array_equal(_files.prepared(files, size)[:], threads)
    assert len(np.unique(threads.reshape(11, -1), axis=0)) == 11


def test_a_damaged_file_is_named_by_processes_too(files, monkeypatch):
    by_processes(monkeypatch)
    files[7].write_bytes(b"no image")
    with pytest.raises(InputError, match=r"cannot read image .*7\.png"):
        _files.read(files, 8)


def test_an_image_of_the_wanted_size_keeps_its_pixels(files):
    square = Image.open(files[0]).crop((0, 0, 8, 8))
    square.save(files[0])
    assert np.array_equal(_files.read(files[:1], 8)[0], np.asarray(square))
