import pytest

from ngf import plugins
from ngf.errors import InputError


@pytest.mark.parametrize("room", plugins.ROOMS)
def test_every_plugin_of_every_room_loads_and_says_what_it_is(room):
    assert plugins.names(room)
    for name in plugins.names(room):
        assert plugins.load(room, name).__doc__, f"{room}/{name}.py has no docstring"


@pytest.mark.parametrize("room", plugins.ROOMS)
def test_unknown_name_is_answered_with_the_names_that_exist(room):
    with pytest.raises(InputError) as error:
        plugins.load(room, "nothing")
    assert "'nothing'" in str(error.value)
    assert all(name in str(error.value) for name in plugins.names(room))


def test_helpers_are_not_plugins():
    assert not [name for room in plugins.ROOMS for name in plugins.names(room) if name[0] == "_"]
