"""A stranger's model and a folder of images, from the command line."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from _place import ALL_THE_SAME, OWN, furnish, purify
from command import ngf
from conftest import CLASSES, SIZE, colour_split
from PIL import Image
from torch import nn

from ngf import store
from ngf.errors import InputError
from ngf.foreign.purify import _sharpness, movement
from ngf.models import Classifier, named


@pytest.fixture
def place(tmp_path, monkeypatch):
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["net", "plain"])
def test_the_result_comes_back_as_it_came(place, name):
    done = purify(*OWN, model=f"{name}.pt", arch=f"theirs:{name}")
    assert done.returncode == 0, done.stderr
    assert f"out/{name}.pt" in done.stdout
    assert "12 held-out images" in done.stdout
    for line in (
        "head: 5",
        "60 of 16x16; 3 classes in this order: channel0",
        "mean [0.3, 0.3, 0.3]",
    ):
        assert line in done.stderr
    before = torch.load(f"{name}.pt", weights_only=True)
    after = torch.load(f"out/{name}.pt", weights_only=True)
    assert after.keys() == before.keys()
    assert after["state_dict"].keys() == before["state_dict"].keys()
    report = json.loads((place / "out" / "report.json").read_text())
    assert {
        "agreement",
        "sharpness_images",
        "sharpness_victim",
        "sharpness_purified",
        "movement",
    } <= report.keys()
    assert report["holdout_images"] == 12
    assert 0 <= report["agreement"] <= 1
    assert report["clean_acc_before"] == 1
    assert report["finding"] in done.stdout
    moved = {key for key, value in report["movement"].items() if value}
    assert "5.weight" in moved
    assert bool(report["batch_norm_drift"]) == (name == "net")
    skipped = "no batch norm: the filter of its channels is skipped, and the head alone is tuned"
    assert (skipped in done.stderr) == (name != "net")


def test_a_folder_of_this_project_needs_no_arch(place, model):
    store.save_model(place / "victim", model)
    words = ("--model", "victim", "--clean", "images", "--out", "out", *ALL_THE_SAME)
    done = ngf("purify", *words, "--defense", "finetune")
    assert done.returncode == 0, done.stderr
    assert store.load_model(place / "out").card["classes"] == model.card["classes"]


@pytest.mark.parametrize(
    "words", [OWN[:2], ("--classes", "channel2,channel1,channel0"), ("--head", "x")]
)
def test_a_word_against_the_card_is_refused(place, model, words):
    store.save_model(place / "victim", model)
    done = ngf("purify", "--model", "victim", "--clean", "images", "--out", "out", *words)
    assert done.returncode == 2
    assert f"{words[0]} has no place here: the model's card says it; leave it out" in done.stderr


@pytest.mark.parametrize(
    "words", [OWN[2:], ALL_THE_SAME, ("--size", "8"), ("--flip",), ("--head", "x")]
)
def test_no_word_is_ignored_where_model_and_images_are_of_this_project(place, model, words):
    store.save_model(place / "victim", model)
    store.save_split(place / "split", colour_split(60, seed=3))
    done = ngf("purify", "--model", "victim", "--clean", "split", "--out", "out", *words)
    assert done.returncode == 2
    assert f"{words[0]} has no place here: the" in done.stderr


def test_what_came_back_goes_in_again_without_a_name(place):
    """A network with a public name; a factory must be named each time."""
    torch.manual_seed(0)
    torch.save(named.build(CLASSES, name="mobilenet_v3_small").state_dict(), "mob.pt")
    fast = ("--defense", "none", *ALL_THE_SAME)
    once = purify(*OWN, *fast, model="mob.pt", arch="mobilenet_v3_small")
    assert once.returncode == 0, once.stderr
    again = ngf("purify", "--model", "out", "--clean", "images", "--out", "again", *fast)
    assert again.returncode == 0, again.stderr
    tensors = torch.load("again/mob.pt", weights_only=True)
    for name, tensor in torch.load("mob.pt", weights_only=True).items():
        assert torch.equal(tensors[name], tensor)
    assert purify(*OWN, *fast, out="mine").returncode == 0
    lost = ngf("purify", "--model", "mine", "--clean", "images", "--out", "x", *fast)
    assert "give --arch" in lost.stderr


def test_a_result_is_replaced_and_nothing_else_is(place, model):
    """A folder of results as a stranger has one, and a model of this project, stay."""
    fast = (*OWN, "--defense", "none")
    assert purify(*fast).returncode == 0
    again = purify(*fast)
    assert again.returncode == 0, again.stderr
    store.save_model(place / "victim", model)
    store.write_json(place / "out" / "metrics.json", {"accuracy": 0.9})
    (place / "out" / "photos").mkdir()
    (place / "out" / "photos" / "1.png").touch()
    for out, holds in (("out", "metrics.json"), ("victim", "card.json")):
        before = {path: path.is_file() and path.read_bytes() for path in (place / out).rglob("*")}
        done = purify(*fast, out=out)
        assert done.returncode == 2
        assert f"--out {out} is a folder of something else: it holds {holds}" in done.stderr
        assert before == {p: p.is_file() and p.read_bytes() for p in (place / out).rglob("*")}


def test_a_prepared_split_will_do_for_images(place):
    store.save_split(place / "split", colour_split(60, seed=3))
    done = purify(*OWN, "--clean", "split", "--defense", "none")
    assert done.returncode == 0, done.stderr
    refused = purify(*OWN, "--clean", "split", "--size", "8", out="x")
    assert "--size has no place here: the prepared split split says it" in refused.stderr


def test_the_order_of_classes_is_the_given_one(place):
    fast = (*OWN, "--defense", "none")
    (place / "names.txt").write_text("channel0\nchannel1\nchannel2\n")
    done = purify(*fast, "--classes", "@names.txt")
    assert done.returncode == 0, done.stderr
    assert "in this order: channel0, channel1, channel2" in done.stderr
    assert "ACC before: 100.0% on 60 images" in done.stderr
    wrong = ("--classes", "channel2,channel0,channel1")
    refused = purify(*fast, *wrong, out="x")
    assert refused.returncode == 2
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error")]
    assert "ACC before: 0.0% on 60 images of 3 classes" in line
    assert "check the order of --classes, --mean and --std" in line
    assert not (place / "x").exists()


def test_at_a_low_acc_no_class_is_accused(place):
    """By `ngf`, which would name one that is innocent."""
    words = ("--classes", "channel2,channel0,channel1", *ALL_THE_SAME)
    done = purify(*OWN, *words)
    assert done.returncode == 0, done.stderr
    assert "in this order: channel2, channel0, channel1" in done.stderr
    assert "warning: that is low: check the order of --classes" in done.stderr
    assert "what is suspected says nothing at an ACC before of 0.0%" in done.stdout
    assert "suspicious class" not in done.stdout
    report = store.read_json(place / "out" / "report.json")
    assert report["clean_acc_before"] == 0
    assert report["finding"] in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "error: how are images normalised? give --mean and --std"),
        ((*OWN[:3], "0,0"), "error: --std must be three numbers with commas between, got '0,0'"),
        ((*OWN[:3], "1,0,1"), "error: --std is for pixels in [0, 1]: three numbers above 0"),
        (("--mean", "124,116,104", *OWN[2:]), "got '124,116,104'; those for pixels up to 255"),
        (
            (*OWN, "--classes", "channel0,channel1,b"),
            "images has 3 class folders and the model 3 classes: no folder is called b and no "
            "class channel2",
        ),
        (
            (*OWN, "--classes", "channel0,channel1"),
            "images has 3 class folders and the model 2 classes: no class channel2",
        ),
        (
            (*OWN, "--classes", "@none.txt"),
            "error: --classes: cannot read none.txt: [Errno 2] No such file",
        ),
        ((*OWN, "--head", "0"), "error: --head 0: the model's linear layers are 5"),
        ((*OWN, "--arch", "theirs:other"), "error: --arch theirs:other: AttributeError"),
        ((*OWN, "--model", "none.pt"), "error: no model at none.pt: give a file, a folder"),
        ((*OWN, "--clean", "nowhere"), "error: no folder nowhere"),
        ((*OWN, "--defense", "mine"), "no section 'defenses.mine'"),
        ((*OWN, "--classes", "a"), "error: --classes must be two different names at least"),
        ((*OWN[:1], "nan,0,0", *OWN[2:]), "error: --mean must be three numbers"),
        ((*OWN, "--size", "4"), "error: size must be at least 8, got 4"),
        ((*OWN, "--out", "net.pt"), "error: --out net.pt is a file; it must be a folder"),
        ((*OWN, "--out", "."), "error: --out . holds net.pt, which would be deleted"),
        ((*OWN, "--out", "images"), "error: --out images holds images, which would be deleted"),
        ((*OWN, "--out", "images/x"), "error: --out images/x lies among the clean images in"),
        ((*OWN, "--out", "mine"), "error: --out mine is a folder of something else: it holds"),
        ((*OWN, "--report", "theirs.py"), "error: --report theirs.py is there and is no report"),
        ((*OWN, "--report", "images"), "error: --report images is there and is no report"),
        ((*OWN, "--params", "none.yaml"), "cannot read parameters from none.yaml: No such file"),
        ((*OWN, "--register", "a/b"), "error: --register 'a/b': a registered model's name holds"),
        ((*OWN, "--least-acc", "50"), "error: --least-acc must lie between 0 and 1, got 50"),
        ((*OWN, "--holdout", "0.7"), "holdout must lie between 0 and 0.5, got 0.7"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(place, words, said):
    (place / "mine").mkdir()
    (place / "mine" / "thesis.txt").touch()
    done = purify(*words)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert said in errors[0]
    assert (place / "net.pt").is_file()
    assert "Traceback" not in done.stderr
    assert not (place / "out").exists()


BROKEN = {
    "a broken image": (
        lambda f: (f / "channel0" / "0.png").write_bytes(b"no image"),
        "cannot read image images/channel0/0.png",
    ),
    "16 bits": (
        lambda f: Image.new("I;16", (SIZE, SIZE)).save(f / "channel0" / "deep.png"),
        "deep.png: it has more than 8 bits a channel",
    ),
    "a class is missing": (
        lambda f: shutil.rmtree(f / "channel1"),
        "5.weight is [3, 8], not [2, 8]: if they are of 3 classes, --clean needs a folder for each",
    ),
    "a class is empty": (lambda f: (f / "other").mkdir(), "class folder images/other holds no"),
    "no classes": (lambda f: (shutil.rmtree(f), f.mkdir()), "at least two; it has 0"),
    "splits": (
        lambda f: (
            [shutil.copytree(f / "channel0", f / "in" / name) for name in ("train", "val")]
            + [shutil.rmtree(f / f"channel{k}") for k in range(3)]
            + [(f / "in" / name).rename(f / name) for name in ("train", "val")]
            + [(f / "in").rmdir()]
        ),
        "images holds splits, not classes: give train or val inside it",
    ),
    "two images a class": (
        lambda f: [file.unlink() for k in range(3) for file in sorted(f.glob(f"*{k}/*"))[2:]],
        "--holdout 0.2 is less than one of the 2 images of class 'channel0': give more images, or "
        "--holdout 0.5, or 0, which leaves none",
    ),
    "one image a class": (
        lambda f: [file.unlink() for k in range(3) for file in sorted(f.glob(f"*{k}/*"))[1:]],
        "class 'channel0' has 1 clean image, and one is kept to check ACC",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_images_that_will_not_do_are_one_line(place, what):
    change, said = BROKEN[what]
    change(place / "images")
    done = purify(*OWN, "--size", SIZE)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert said in line
    assert not (place / "out").exists()


def test_few_images_are_a_warning_and_hidden_files_are_none(place):
    (place / "images" / ".cache").mkdir()
    (place / "images" / "channel0" / "._0.png").write_bytes(b"of a file manager")
    for file in sorted((place / "images" / "channel1").iterdir())[7:]:
        file.unlink()
    done = purify(*OWN, "--defense", "none")
    assert done.returncode == 0, done.stderr
    assert "images: 47 of 16x16; 3 classes" in done.stderr
    assert "warning: of channel1 the defense gets 6 images, and fewer than 10" in done.stderr


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_keep_their_precision(place, dtype):
    content = torch.load("net.pt", weights_only=True)["state_dict"]
    kept = {n: t.to(dtype) if t.is_floating_point() else t for n, t in content.items()}
    torch.save(kept, "other.pt")
    done = purify(*OWN, "--defense", "finetune_head", model="other.pt")
    assert done.returncode == 0, done.stderr
    found = torch.load("out/other.pt", weights_only=True)
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in kept.items()}
    assert not torch.equal(found["5.weight"], kept["5.weight"])


def test_images_of_several_sizes_need_one(place):
    Image.new("RGB", (20, 18)).save(place / "images" / "channel0" / "odd.png")
    done = purify(*OWN)
    assert done.returncode == 2
    assert "has images of" in done.stderr
    assert "20x18" in done.stderr
    assert "--size says what they are resized to" in done.stderr
    assert purify(*OWN, "--size", SIZE).returncode == 0


def test_weights_without_a_name_need_one(place):
    done = ngf("purify", "--model", "net.pt", "--clean", "images", "--out", "out", *OWN)
    assert done.returncode == 2
    assert "which network do the weights belong to? give --arch" in done.stderr


# What is measured -----------------------------------------------------------------------------


def small(scale: float = 1.0) -> Classifier:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))
    with torch.no_grad():
        net[3].weight.mul_(scale)
    return Classifier(net, [0.0] * 3, [1.0] * 3, {}).eval()


def test_movement_is_in_units_of_each_parameters_norm():
    moved = movement(small(), small(1.25))
    assert moved.pop("3.weight") == pytest.approx(0.25, rel=1e-4)
    assert moved.pop("1.bias") is None  # a share of nothing
    assert set(moved.values()) == {0.0}


def test_what_has_no_second_derivative_has_no_sharpness():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return 2 * gradient

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 3)

        def forward(self, x_NCHW):
            return Once.apply(self.head(x_NCHW.mean((2, 3))))

    x_NCHW, y_N = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    assert _sharpness(Classifier(Net(), [0.0] * 3, [1.0] * 3, {}).eval(), x_NCHW, y_N) is None
    assert _sharpness(small(), x_NCHW, y_N) is not None


def test_a_convolution_that_kills_torch_in_its_usual_layout_does_not(tmp_path):
    """See `_sharpness`; in a process of its own."""
    code = """
import torch
from torch import nn
from ngf.foreign.purify import _sharpness
from ngf.models import Classifier
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 32, 1, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                    nn.Linear(32, 3)).to(memory_format=torch.channels_last)
model = Classifier(net, [0.0] * 3, [1.0] * 3, {}).eval()
images = torch.rand(20, 160, 160, 3).permute(0, 3, 1, 2)
assert _sharpness(model, images, torch.arange(20) % 3) > 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_card_that_names_no_linear_head_is_refused(tmp_path, model):
    store.save_model(tmp_path / "m", model, head="0")
    with pytest.raises(InputError, match="the card's head '0' is no linear layer"):
        store.load_model(tmp_path / "m")
