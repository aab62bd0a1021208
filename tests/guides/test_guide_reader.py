"""docs/contributing/reader.md, followed: one file, and a corpus is built with the new reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from guide import Guide
from tiny_models import tiny_model

from stillroom.corpus.readers.registry import readers

FILE = "src/stillroom/corpus/readers/fortune.py"


@pytest.fixture
def guide(tmp_path: Path) -> Guide:
    assert ".fortune" not in readers(), "the guide's reader has been added: take another one for the page"
    return Guide("reader", tmp_path)


@pytest.fixture
def recipe(guide: Guide, text: Path, small_recipe: Any) -> Path:
    """A recipe with the page's source: twenty texts in two files, and one that the page's pattern leaves alone."""
    folder = guide.folder / "sayings"
    folder.mkdir()
    texts = [path.read_text(encoding="utf-8").strip() for path in sorted(text.iterdir())]
    for number in range(2):
        sayings = "".join(f"{saying}\n%\n" for saying in texts[10 * number : 10 * number + 10])
        (folder / f"{number}.fortune").write_text(sayings, encoding="utf-8")
    (folder / "notes.txt").write_text("not asked for", encoding="utf-8")
    settings = small_recipe(tiny_model("llama", guide.folder / "teacher", layers=2))
    settings["corpus"] = yaml.safe_load(guide.text("corpus.yaml")) | {
        "sequence_length": 64,
        "train_tokens": 1024,
        "validation_tokens": 64,
        "heldout_tokens": 64,
    }
    path = guide.folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


BUILD = "import sys, stillroom as st; st.run(sys.argv[1], until='corpus')"


def build(guide: Guide, recipe: Path, where: str) -> None:
    guide.python("-c", BUILD, str(recipe), where=where)
    ledger = json.loads((guide.folder / "runs" / "small" / "corpus" / "ledger.json").read_text(encoding="utf-8"))
    (source,) = ledger["sources"]
    assert (source["documents"], source["empty"], source["duplicates"]) == (20, 0, 0)
    # Whole pieces are taken: the last one goes past the number that was asked for.
    assert 1024 <= ledger["splits"]["train"]["tokens"] < 1024 + 64


@pytest.mark.longer
def test_one_file_in_the_source_tree(guide: Guide, recipe: Path) -> None:
    assert guide.follow() == [FILE]
    build(guide, recipe, "src")


def test_a_package_of_its_own(guide: Guide, recipe: Path) -> None:
    assert guide.install(FILE) == ["stillroom_fortune.py"]
    build(guide, recipe, "site")


def test_a_damaged_file_is_named(guide: Guide, recipe: Path) -> None:
    guide.install(FILE)
    file = guide.folder / "sayings" / "0.fortune"
    file.write_text(file.read_text(encoding="utf-8").removesuffix("%\n"), encoding="utf-8")
    with pytest.raises(AssertionError) as caught:
        guide.python("-m", "stillroom", "plan", str(recipe), where="site")
    shown = " ".join(str(caught.value).split())
    assert "0.fortune: the last text does not end with `%`." in shown
    assert "Traceback" not in shown
