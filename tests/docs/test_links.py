"""Every relative link, anchor, file and message that a Markdown file names exists."""

import re
from urllib.parse import unquote

import pytest

from .markdown import FILES, GUIDES, ROOT, anchors, code_spans, links, name_of

# Pages that speak of the files of today. The changelog speaks of older ones too.
NAMING_FILES = [*GUIDES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "bench" / "README.md"]
# A path in the project, without placeholders: `kernels/launch.py`, `tests/data/golden`.
_PATH = re.compile(r"\.?(?:docs|examples|bench|kernels|train|fastglow|voices|tests|\.github|\.ci)/[\w./-]*")
_QUOTED = re.compile(r"\"([^\"]+)\"")
# Made by the project's own commands.
WRITTEN_LATER = ("bench/results/",)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_relative_links_lead_somewhere(path):
    broken = []
    for link in links(path):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = unquote(link).partition("#")
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("path", NAMING_FILES, ids=name_of)
def test_named_files_exist(path):
    named = [span for span in code_spans(path) if _PATH.fullmatch(span) and not span.startswith(WRITTEN_LATER)]
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_page_is_reached_from_the_readme():
    reached = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md")}
    assert {page.resolve() for page in GUIDES[1:]} <= reached


def test_the_messages_of_the_troubleshooting_page_exist():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    messages = [message for heading in headings for message in _QUOTED.findall(heading)]
    folders = [ROOT / name for name in ("fastglow", "kernels", "train")]
    code = "\n".join(path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob("*.py"))
    assert len(messages) >= 4
    assert [message for message in messages if message not in code] == []
