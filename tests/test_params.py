from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ngf import params, plugins
from ngf.attacks import parted
from ngf.errors import InputError


def takes(first, second, *, rate: float, count: int, name: str, sizes: list[int], on: bool): ...


GOOD = {"rate": 0.5, "count": 3, "name": "x", "sizes": [1, 2], "on": True}


@pytest.fixture(autouse=True, scope="module")
def users_yaml():
    """Not the quicker one of conftest: what it makes of bad text is what a user is told."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "SafeLoader", yaml.loader.SafeLoader)
        yield


def test_options_pass_unchanged():
    assert params.options(takes, GOOD, "here") == GOOD


def test_whole_floats_become_integers_because_kubeflow_has_only_doubles():
    converted = params.options(takes, {**GOOD, "count": 3.0, "sizes": [1.0], "rate": 1}, "here")
    assert converted["count"] == 3
    assert isinstance(converted["count"], int)
    assert isinstance(converted["sizes"][0], int)
    assert isinstance(converted["rate"], float)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rte": 0.5}, "unknown key 'rte': it takes rate, count, name, sizes, on"),
        ({"count": 2.5}, "here.count: 2.5 is not int"),
        ({"count": True}, "here.count: True is not int"),
        ({"rate": "0.5"}, "here.rate: '0.5' is not float"),
        ({"rate": float("nan")}, "here.rate: nan is not float"),
        ({"on": 1}, "here.on: 1 is not bool"),
        ({"sizes": ["a"]}, "here.sizes: 'a' is not int"),
    ],
)
def test_wrong_options_are_named(change, said):
    with pytest.raises(InputError, match=r"here") as error:
        params.options(takes, {**GOOD, **change}, "here")
    assert said in str(error.value)


@pytest.mark.parametrize("key", GOOD)
def test_missing_option_is_named(key):
    with pytest.raises(InputError, match=f"missing key '{key}'"):
        params.options(takes, {k: v for k, v in GOOD.items() if k != key}, "here")


@given(st.text())
def test_any_text_is_a_mapping_or_an_input_error(text):
    class File:
        def read_text(self):
            return text

    said = ""
    try:
        content = params.read(File())
    except InputError as error:
        said, content = str(error), {}
    assert "\n" not in said
    assert isinstance(content, dict)


def test_section_names_what_exists(tmp_path):
    content = {"attacks": {"badnets": {"size": 3}, "benign": None}, "x": 1}
    file = tmp_path / "params.yaml"
    assert params.section(content, "attacks.badnets", file) == {"size": 3}
    assert params.section(content, "attacks.benign", file) == {}
    with pytest.raises(InputError, match=r"'attacks.blend'.*badnets, benign"):
        params.section(content, "attacks.blend", file)
    with pytest.raises(InputError, match="must hold settings"):
        params.section(content, "x", file)


@pytest.mark.parametrize("known", [("diagonal", "identity"), {"diagonal": 1, "identity": 2}])
def test_one_of_names_the_value_and_what_there_is(known):
    params.one_of(known, fisher="diagonal", other="identity")
    with pytest.raises(InputError) as error:
        params.one_of(known, fisher="identity", kind="kfac", last="none")
    assert str(error.value) == "unknown kind 'kfac': there is diagonal, identity"


@pytest.mark.parametrize("near", ["", "diag", "Diagonal", " diagonal", "diagonal, identity"])
def test_one_of_takes_no_part_of_a_name(near):
    with pytest.raises(InputError, match="unknown fisher"):
        params.one_of(("diagonal", "identity"), fisher=near)


# The project's own file -----------------------------------------------------------------------

ENTRY = {"datasets": "load", "attacks": "plant", "defenses": "purify"}


@pytest.mark.parametrize("room", ENTRY)
def test_params_yaml_has_one_valid_section_for_each_plugin(room, numbers):
    assert sorted(numbers[room]) == plugins.names(room)
    for name, given_options in numbers[room].items():
        entry = getattr(plugins.load(room, name), ENTRY[room])
        own = parted(given_options)[0] if room == "attacks" else given_options
        params.options(entry, own, f"{room}.{name}")


def test_every_data_set_has_a_training_recipe(numbers):
    from ngf.training import Recipe

    assert sorted(numbers["train"]) == plugins.names("datasets")
    for name, recipe in numbers["train"].items():
        parsed = params.parse(Recipe, recipe, f"train.{name}")
        build = plugins.load("models", parsed.arch).build
        params.options(build, parsed.model, f"train.{name}.model")


def test_dvc_sees_the_same_numbers_as_the_stages(numbers):
    """Anchors and merges must mean the same to DVC's YAML 1.2 parser."""
    from dvc.utils.serialize import load_yaml

    assert load_yaml("params.yaml") == yaml.safe_load(Path("params.yaml").read_text())
