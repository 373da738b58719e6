"""How many processes and threads the work is divided among."""

import os

import pytest

from ngf import images
from ngf.cores import cores
from ngf.datasets import _files
from ngf.errors import InputError


def test_a_share_is_told_and_else_it_is_what_the_scheduler_allows(monkeypatch):
    monkeypatch.delenv("NGF_CPUS", raising=False)
    assert cores() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("NGF_CPUS", "3")
    assert cores() == 3


@pytest.mark.parametrize("told", ["", "0", "-1", "two", "1.5"])
def test_a_share_that_is_no_number_is_named(monkeypatch, told):
    monkeypatch.setenv("NGF_CPUS", told)
    with pytest.raises(InputError, match="NGF_CPUS must be a whole number from 1 on"):
        cores()


def test_readers_are_as_many_as_the_share(monkeypatch):
    monkeypatch.setenv("NGF_CPUS", "3")
    assert images.readers.__wrapped__()._max_workers == 3


def test_processes_that_read_files_are_as_many_as_the_share(monkeypatch):
    monkeypatch.setenv("NGF_CPUS", "3")
    with _files._hands(int, _files.AT_ONCE + 1) as hand_out:
        assert list(hand_out(range(4))) == [0, 1, 2, 3]
        assert hand_out.__closure__ is not None
        (pool,) = (c.cell_contents for c in hand_out.__closure__ if hasattr(c.cell_contents, "map"))
        assert pool._processes == 3
