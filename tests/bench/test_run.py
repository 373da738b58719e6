"""A small benchmark end to end: what a cell holds, what is skipped, what a failure costs."""

import json

import pytest

from ngf import plugins, store
from ngf.bench import cell, run, victims
from ngf.errors import InputError

NARROW = {"depth": 18, "width": 4, "stem_stride": 2}


@pytest.fixture(scope="module")
def small(numbers, tmp_path_factory):
    """params.yaml's numbers with little to do, and a folder."""
    own = json.loads(json.dumps(numbers))
    own["datasets"]["signs"] |= {"train_images": 640, "test_images": 64}
    own["prepare"]["clean_fraction"] = 0.1
    own["train"]["signs"] |= {"epochs": 1, "model": NARROW}
    own["defenses"]["finetune"] |= {"epochs": 1}
    return own, tmp_path_factory.mktemp("bench")


def bench(small, defenses=("none", "clp"), attacks=("badnets", "benign"), seeds=(0,)):
    numbers, root = small
    places = run.places(numbers, "signs", seeds=seeds, norm="batch", root=root, raw=None)
    return run.Bench(places, attacks, defenses)


def done_of(chosen, at_once=2):
    said: list[str] = []
    whole = run.run(chosen, at_once, said.append)
    assert said[-1].startswith(f"[{len(said)}/{len(said)}] ")
    return whole, dict(line.partition("] ")[2].rsplit(": ", 1) for line in said)


def test_every_cell_is_measured_once_and_resumed(small):
    chosen = bench(small)
    whole, said = done_of(chosen)
    assert whole
    assert said["0 badnets clp"] == "done"
    found = {(one["attack"], one["defense"]): one for one in chosen.found()}
    assert found.keys() == {(a, d) for a in ("badnets", "benign") for d in ("none", "clp")}
    one = found["badnets", "clp"]
    assert one["settings"] == {"u": 3.0}
    assert one["digests"]["victim"] == store.digest(chosen.places[0].variant("badnets") / "victim")
    for whose in ("model", "victim", "reference"):
        for key in ("acc", "asr", "ra"):
            value = one[whose][key]
            assert 0 <= value["low"] <= value["value"] <= value["high"] <= 1
    assert one["model"]["acc"]["n"] == 64
    assert one["seconds"] >= 0
    assert 0 <= one["own_bytes"] < one["peak_bytes"]
    assert one["hardware"]
    assert one["versions"].keys() == {"ngf", "torch", "numpy", "python"}
    assert found["benign", "none"]["model"]["asr"] is None
    assert found["badnets", "none"]["model"] == found["badnets", "none"]["victim"]
    assert "the attack did not take" in found["badnets", "none"]["attack_failed"]

    times = {file: file.stat().st_mtime_ns for file in files(chosen)}
    assert done_of(chosen)[0]
    assert times == {file: file.stat().st_mtime_ns for file in files(chosen)}


@pytest.mark.parametrize("limit", [None, "AVX2"])
def test_a_cell_says_which_instructions_it_was_held_to(monkeypatch, limit):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert cell._machine(1).get("max_isa") == limit


def files(chosen):
    return [cell.file(*one) for one in chosen.cells()]


def test_another_setting_runs_the_cells_that_read_it(small):
    done_of(bench(small))
    numbers, root = small
    changed = {**numbers, "defenses": {**numbers["defenses"], "clp": {"u": 1.0}}}
    chosen = bench((changed, root), attacks=("badnets",))
    before = {file: file.stat().st_mtime_ns for file in files(chosen)}
    assert done_of(chosen)[0]
    moved = {file.stem for file in files(chosen) if file.stat().st_mtime_ns != before[file]}
    assert moved == {"clp"}
    store.remove(files(chosen)[1])


def test_a_failed_cell_is_written_down_and_tried_again(small):
    """A network without batch norm: clp says what it lacks, and the others are measured."""
    numbers, root = small
    places = run.places(numbers, "signs", seeds=[0], norm="group", root=root, raw=None)
    chosen = run.Bench(places, ["badnets"], ["clp", "none"])
    whole, said = done_of(chosen)
    assert not whole
    assert said["0 badnets clp"] == "failed"
    assert said["0 badnets none"] == "done"
    lost, fine = chosen.found()
    assert "batch norms" in lost["error"]
    assert "error" not in fine
    assert not cell.is_done(places[0], "badnets", "clp")


def test_a_killed_process_fails_its_cell_alone(small, monkeypatch):
    done_of(bench(small))
    chosen = bench(small, defenses=("none", "finetune"), attacks=("badnets",))
    monkeypatch.setattr(run, "_cell", killed)
    whole, said = done_of(chosen, at_once=1)
    assert not whole
    assert {said["0 badnets none"], said["0 badnets finetune"]} == {"failed"}
    assert said["0 badnets before"] == "done"


def killed(*_):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def test_victims_of_other_numbers_are_no_silent_mixture(small):
    """Neither other images, another attack nor another network."""
    numbers, root = small
    done_of(bench(small))
    changes = {
        "data": ("prepare", "clean_fraction", 0.2),
        "badnets": ("attacks", "badnets", {**numbers["attacks"]["badnets"], "size": 5}),
        "reference": ("train", "signs", {**numbers["train"]["signs"], "lr": 0.01}),
    }
    for job, (section, key, value) in changes.items():
        other = {**numbers, section: {**numbers[section], key: value}}
        whole, said = done_of(bench((other, root), attacks=("badnets",)))
        assert not whole
        assert said["reference" if job == "reference" else f"0 {job}"] == "failed"
    with pytest.raises(InputError, match="was made with other numbers than today's: delete it"):
        victims.victim(bench((other, root)).places[0], "badnets")
    assert done_of(bench(small))[0]


def test_a_recalibrated_victim_waits_for_the_standard_one(small):
    needs, _ = bench(small, attacks=("badnets-recalibrated",)).plan(threads=1)
    assert "0 badnets" in needs["0 badnets-recalibrated"]
    needs, _ = bench(small, attacks=("badnets-recalibrated", "badnets")).plan(threads=1)
    assert list(needs).count("0 badnets") == 1


def test_one_reference_serves_all_seeds(small):
    needs, _ = bench(small, seeds=(3, 4)).plan(threads=1)
    assert needs["reference"] == {"3 data"}
    assert all("reference" in needs[f"{seed} badnets before"] for seed in (3, 4))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attacks": ["smoke"]}, "unknown attack 'smoke'"),
        ({"attacks": ["badnets-9%"]}, "recalibrated"),
        ({"defenses": ["magic"]}, "magic"),
        ({"seeds": []}, "at the least"),
    ],
)
def test_an_unknown_name_starts_nothing(small, changes, said):
    with pytest.raises(InputError, match=said):
        bench(small, **changes)


def test_an_unknown_option_is_named_before_anything_runs(small):
    numbers, root = small
    changed = {**numbers, "defenses": {**numbers["defenses"], "clp": {"v": 1.0}}}
    with pytest.raises(InputError, match="'v'"):
        bench((changed, root))


def test_views_move_as_the_training_images_did(small):
    numbers, root = small
    own = json.loads(json.dumps(numbers))
    own["train"]["signs"]["shift"] = 3
    at = victims.place(own, "signs", seed=0, root=root)
    for name in plugins.names("defenses"):
        found = cell.settings(at, name)
        assert found.get("shift", 3) == 3
        assert found.keys() == numbers["defenses"][name].keys()


def test_the_command_prints_the_table(small, tmp_path, capsys):
    import yaml

    from ngf.cli import app

    numbers, root = small
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(numbers))
    arguments = ["bench", "--attacks", "badnets", "--defenses", "none,clp", "--seeds", "0"]
    arguments += ["--root", str(root), "--params", str(file), "--rows", str(tmp_path / "r.json")]
    done_of(bench(small))
    app([*arguments, "--picture", str(tmp_path / "p.png"), "--dry-run"], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "| clp |" in printed
    assert len(json.loads((tmp_path / "r.json").read_text())) == 2
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
