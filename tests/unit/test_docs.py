"""What the pages tell people to type exists, and so does what they point to."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from skerry.__main__ import build_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
_NEED_NO_WORDS = {"__init__", "commands", "errors"}
_FENCED = re.compile(r"^```[a-z]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([\w./-]*?\.md)?(?:#([\w-]+))?\)")


def typed(text: str) -> list[str]:
    """Return the calls of our command in a page's blocks, without comments and redirections."""
    lines = (line.strip() for block in _FENCED.findall(text) for line in block.splitlines())
    calls = (re.split(r"\s+#|[>|&]", line)[0].strip() for line in lines)
    return [one for one in calls if one.startswith("skerry ")]


def anchors(text: str) -> set[str]:
    """Return the places in a page that a link may name."""
    titles = re.findall(r"^#+ (.+)$", _FENCED.sub("", text), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", one) for one in titles)
    return {re.sub(r"[^\w\- ]", "", one).lower().replace(" ", "-") for one in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_says_to_type_is_understood(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = build_parser()
    for call in typed(page.read_text()):
        words = shlex.split(re.sub(r"[][]", "", call).replace("...", "x"))[1:]
        try:
            parser.parse_args(words)
        except SystemExit:
            pytest.fail(f"{call}: {capsys.readouterr().err}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_where_a_page_points_there_is_something(page: Path) -> None:
    for name, anchor in _LINK.findall(page.read_text()):
        target = page.parent / name if name else page
        assert target.is_file(), f"{page.name}: {name}"
        assert not anchor or anchor in anchors(target.read_text()), f"{page.name}: {name}#{anchor}"


@pytest.mark.parametrize(
    ("page", "folder"),
    [("kubernetes.md", "appliance/kubernetes"), ("cni.md", "appliance/cni")],
)
def test_a_page_with_a_table_of_modules_names_them_all(page: str, folder: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    modules = {path.stem for path in (ROOT / folder).glob("*.py")}
    assert {one for one in modules if f"`{one}`" not in text} <= _NEED_NO_WORDS


def test_the_pages_are_read_rightly() -> None:
    text = "# A (b), `c`\n```sh\n# no title\nskerry node ls  # who\nskerry token new > x\nls\n```\n"
    assert typed(text) == ["skerry node ls", "skerry token new"]
    assert anchors(text) == {"a-b-c"}
    assert len(PAGES) > 15
    assert sum(len(typed(page.read_text())) for page in PAGES) > 30
