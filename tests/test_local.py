"""The pipeline on this machine: what it may delete."""

import pytest

from ngf.errors import InputError
from pipelines.local import _emptied, run_pair

NUMBERS = {"datasets": {"signs": {}}, "attacks": {"badnets": {}}}


@pytest.mark.parametrize(("dataset", "attack"), [("nosuch", "badnets"), ("signs", "nosuch")])
def test_an_unknown_name_deletes_nothing(tmp_path, dataset, attack):
    (tmp_path / "precious").touch()
    with pytest.raises(InputError, match="'nosuch': there is"):
        run_pair(dataset, attack, NUMBERS, tmp_path)
    assert (tmp_path / "precious").exists()


def test_a_folder_of_something_else_stays(tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(InputError, match="holds something else"):
        _emptied(tmp_path)
    assert (tmp_path / "precious").exists()


def test_an_earlier_runs_folder_is_deleted(tmp_path):
    root = tmp_path / "new"
    _emptied(root)
    (root / "old").touch()
    _emptied(root)
    assert not (root / "old").exists()
