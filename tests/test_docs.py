"""Every relative link of the documents leads to a file that is there, and to a heading of it."""

import re
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]
PAGES = sorted([HOUSE / "README.md", *(HOUSE / "docs").glob("*.md")])
LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The headings as GitHub names them."""
    found = (re.sub(r"[^\w\- ]", "", title.lower()) for title in HEADING.findall(page.read_text()))
    return {title.strip().replace(" ", "-") for title in found}


def links(page: Path) -> list[str]:
    return [link for link in LINK.findall(page.read_text()) if "://" not in link]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page):
    for link in links(page):
        file, _, anchor = link.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(there), f"{page.name} links to {link}"


def test_the_readme_links_to_every_page():
    read = {(HOUSE / link.partition("#")[0]).resolve() for link in links(HOUSE / "README.md")}
    assert {page for page in PAGES if page.parent.name == "docs"} <= read
