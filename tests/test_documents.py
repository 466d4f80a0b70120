"""What the documents name is there."""

import re

import pytest
from conftest import ROOT

DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
# a file or a folder of the repository, in code; what a command would make is named otherwise
NAMED = re.compile(r"`((?:sphinx_jax|configs|tools|tests|docs)/[\w./]+|\.ci/run)`")
LINK = re.compile(r"\]\(([^)#]+)\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    links = [link for link in LINK.findall(document.read_text()) if "://" not in link]
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_files_that_are_named_are_there(name):
    named = NAMED.findall((ROOT / name).read_text())
    # siglip.py is CONTRIBUTING's example of a new file
    assert [path for path in named if not (ROOT / path).exists() and "siglip" not in path] == []
