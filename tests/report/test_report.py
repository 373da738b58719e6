"""`ngf report`: files whole or not at all, the same bytes twice, nothing from the network."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from browser import needs_chromium, page
from grids import CLASSES, evaluated, inspected, row

from ngf import params, report
from ngf.errors import InputError
from ngf.stages.evaluate import Thresholds

CHARTS = 6 * 3 + 2 * 6  # of the cells below that are not `none`; of those with an inspection


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    """Two attacks that took, a failed one and benign; two defenses, one of them inspected."""
    runs = tmp_path_factory.mktemp("grid") / "runs"
    for attack, asr in (("badnets", 1.0), ("<script>alert(1)</script>", 0.98)):
        evaluated(runs, attack, "none", (0.97, asr, 0.0), before=(0.97, asr, 0.0))
        evaluated(runs, attack, "finetune", (0.96, 0.9, 0.1), along=True)
        inspected(evaluated(runs, attack, "ngf", (0.95, 0.01, 0.94), along=True))
    evaluated(runs, "blend", "ngf", (0.95, 0.3, 0.6), failed="the attack did not take: ASR 30%")
    evaluated(runs, "benign", "ngf", (0.96, None, None), before=(0.97, None, None))
    return runs


@pytest.fixture(scope="module")
def thresholds(numbers):
    return params.parse(Thresholds, numbers["evaluate"], "evaluate")


@pytest.fixture(scope="module")
def written(grid, thresholds) -> Path:
    out = grid.parent / "report"
    report.write(out, [grid], [], thresholds)
    return out


@pytest.fixture(scope="module")
def html(written) -> str:
    return (written / "index.html").read_text()


def test_the_page_fetches_nothing_and_runs_nothing(html):
    assert set(re.findall(r'(?:src|href)="([^"#:]*:|#)', html)) == {"data:", "#"}
    assert not re.findall(r"<(?:script|link|iframe|object)\b(?! rel=\"icon\")", html)
    assert not re.findall(r"url\((?!#)|@import", html)


def test_foreign_names_are_text(html):
    assert "alert(1)" in html
    assert "<script" not in html
    assert CLASSES[1] not in html
    assert "50$ &amp; $60" in html


def test_every_hash_link_has_its_one_target(html):
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)


def test_every_chart_is_named_for_who_cannot_see_it(html):
    charts = re.findall(r"<svg.*?</svg>", html, flags=re.S)
    assert len(charts) == CHARTS
    for chart in charts:
        root = ET.fromstring(chart)
        title = root.find("{http://www.w3.org/2000/svg}title")
        assert title is not None
        assert title.text == root.attrib["aria-label"]
        assert "#010203" not in chart
        assert "currentColor" in chart
    for start in (
        "Along purification", "Confusion matrix", "Feature map before", "Feature map after",
        "Loss surface before", "Loss surface after", "Spectral density", "Movement by layer",
    ):  # fmt: skip
        assert f'aria-label="{start}' in html


def test_what_was_not_inspected_and_what_failed_is_said(html):
    assert "this defense was not inspected (<code>ngf inspect</code>)" in html
    assert "VICTIM FAILED: the attack did not take: ASR 30%" in html
    assert "FAILED attacks, which are in no mean: blend on signs." in html
    # Six cells have a page: `none` changes nothing.
    assert html.count("No snapshots were kept") == 2


def test_the_same_inputs_give_the_same_bytes(grid, written, thresholds, tmp_path):
    report.write(tmp_path / "again", [grid], [], thresholds)
    files = {p.relative_to(written): p.read_bytes() for p in written.rglob("*") if p.is_file()}
    again = tmp_path / "again"
    assert {p.relative_to(again): p.read_bytes() for p in again.rglob("*") if p.is_file()} == files


def test_a_second_report_takes_the_first_ones_place(grid, thresholds, tmp_path):
    for _ in range(2):
        message, files = report.write(tmp_path / "out", [grid], [], thresholds)
    assert message == f"{tmp_path}/out/index.html: 8 cells; VICTIM FAILED in 1 of them"
    assert all(path.is_file() for path in files.values())


def test_a_damaged_cell_leaves_nothing(thresholds, tmp_path):
    folder = evaluated(tmp_path / "runs", "badnets", "ngf", (0.95, 0.03, 0.9))
    inspected(folder)
    (folder / "inspection" / "surface.json").unlink()
    with pytest.raises(InputError, match=r"is no inspection: it lacks surface.json"):
        report.write(tmp_path / "out", [tmp_path / "runs"], [], thresholds)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs"]


def test_a_folder_of_something_else_is_not_replaced(grid, thresholds, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is a folder of something else"):
        report.write(tmp_path, [grid], [], thresholds)


def test_published_numbers_stand_beside_ours_under_their_own_name(thresholds, tmp_path):
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([row("ngf", 0, (80.0, 1.0, 70.0), dataset="cifar10")]))
    report.write(tmp_path / "out", [], [rows], thresholds)
    html = (tmp_path / "out" / "index.html").read_text()
    assert html.count("<details open>") == 2  # NFT's and FIP's CIFAR-10; ImageNet has none of ours
    assert "<td>1.0 / 80.0</td><td>100.00 / 92.96</td><td>4.87 / 85.92</td>" in html
    assert "printed in NFT&#39;s table" in html
    assert "printed in FIP&#39;s table" in html
    assert "3.16 / 12.31 *" in html  # two cells that have changed places, as printed
    assert "there are no pictures" in html


def test_dvc_plots_get_a_file_a_cell(written):
    files = {str(p.relative_to(written / "plots")) for p in (written / "plots").rglob("*.*")}
    assert {
        "along/signs-badnets-ngf.json",
        "along/signs-badnets-finetune.json",
        "confusion/signs-badnets-ngf.csv",
        "movement/signs-badnets-ngf.json",
        "density/signs-badnets-ngf.json",
    } <= files
    assert not [name for name in files if "none" in name or name.startswith("movement/signs-ben")]
    along = json.loads((written / "plots" / "along" / "signs-badnets-ngf.json").read_text())
    assert [(p["step"], p["ASR"]) for p in along] == [("before", 1.0), ("5", 0.5), ("after", 0.01)]
    lines = (written / "plots" / "confusion" / "signs-badnets-ngf.csv").read_text().splitlines()
    assert lines[0] == "actual,predicted"
    assert lines.count("stop,stop") == 10


LOOK = """(() => {
  document.querySelectorAll('details').forEach(d => d.open = true);
  const wide = [...document.querySelectorAll('body *')].filter(e =>
    !e.closest('.box, svg') && e.getBoundingClientRect().right > innerWidth + 0.5);
  return {
    images: [...document.images].map(i => i.naturalWidth),
    charts: [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().height),
    wide: wide.map(e => e.outerHTML.slice(0, 80)),
    scrolls: document.documentElement.scrollWidth > innerWidth,
    ground: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.querySelector('svg text')).fill,
  };
})()"""


@pytest.mark.slow
@needs_chromium
def test_a_browser_shows_all_of_it_on_desk_and_phone_light_and_dark(written):
    seen = {}
    with page() as tab:
        for width in (1280, 390):
            for dark in (False, True):
                tab.open(written / "index.html", width, dark=dark)
                found = seen[width, dark] = tab.value(LOOK)
                assert tab.complaints() == []
                assert tab.fetched() == [(written / "index.html").as_uri()]
                assert found["images"]
                assert min(found["images"]) == 60
                assert len(found["charts"]) == CHARTS
                assert min(found["charts"]) > 100
                assert found["wide"] == []
                assert not found["scrolls"]
    light, dark = seen[390, False], seen[390, True]
    assert light["ground"] != dark["ground"]
    assert light["ink"] != dark["ink"]  # charts take the page's colour


@pytest.mark.slow
@needs_chromium
def test_the_browser_hears_of_a_missing_picture_and_of_the_network(tmp_path):
    """That the test above can fail."""
    file = tmp_path / "bad.html"
    file.write_text(
        '<img src="http://example.org/a.png"><p style="width: 2000px">x</p>'
        "<svg><text>x</text></svg>"
        "<script>console.error('no')</script>"
    )
    with page() as tab:
        tab.open(file, 390)
        found = tab.value(LOOK)
        assert found["images"] == [0]
        assert found["wide"]
        assert "http://example.org/a.png" in tab.fetched()
        assert len(tab.complaints()) == 2
