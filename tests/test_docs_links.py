"""Every link between the documents has a target, and every file named in them exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in (
        "*.md",
        "docs/*.md",
        "docker/*.md",
        "benchmarks/*.md",
        "tests/*.md",
        "model_repository/*.md",
    )
    for page in ROOT.glob(pattern)
)
#: Folders that file names are relative to; ``docs/extending.md`` names files that its reader writes.
PLACES = (
    "",
    "serving",
    "serving/tiercel_serving",
    "export/tiercel_export/models",
    "pipelines/tiercel_pipelines",
)


def prose(page: Path) -> str:
    """Return the page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return GitHub's anchors of the page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = prose(page)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    if page.name != "extending.md":
        for path in re.findall(r"`([a-z_/]+/[a-z_]+\.(?:py|c))`", text):
            assert any((ROOT / place / path).is_file() for place in PLACES), path
