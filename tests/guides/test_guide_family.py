"""docs/contributing/family.md, followed: one file, and a family can be pruned and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from guide import Guide
from tiny_models import tiny_model

from stillroom.models.families.registry import families

FAMILY = "ernie4_5"
FILE = "src/stillroom/models/families/ernie.py"


@pytest.fixture
def guide(tmp_path: Path) -> Guide:
    assert FAMILY not in families(), "the guide's family has been added: take another one for the page"
    return Guide("family", tmp_path)


def prune_and_export(guide: Guide, small_recipe: Any, where: str) -> None:
    """The page's own script, on a tiny teacher of the family."""
    teacher = tiny_model(FAMILY, guide.folder / "teacher", layers=3)
    recipe = small_recipe(teacher, student={"kind": "shrink", "layers": 2, "intermediate_size": 64}, baseline=False)
    recipe["export"] = {"gguf": ["F16"], "check_tokens": 64}
    recipe["corpus"] |= {"train_tokens": 256}
    (guide.folder / "ernie.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (guide.folder / "try_family.py").write_text(guide.text("try_family.py"), encoding="utf-8")
    shown = guide.python("try_family.py", where=where)
    assert '"num_hidden_layers": 2' in shown
    assert '"intermediate_size": 64' in shown
    made = json.loads((guide.folder / "runs" / "small" / "export" / "export.json").read_text(encoding="utf-8"))
    (file,) = made["files"]
    assert file["type"] == "F16"
    assert 0 <= file["kl_to_pytorch"] < 1e-2


@pytest.mark.longer
def test_one_file_in_the_source_tree(guide: Guide, small_recipe: Any) -> None:
    assert guide.follow() == [FILE]
    prune_and_export(guide, small_recipe, "src")


@pytest.mark.longer
def test_the_tests_of_pruning_take_it_up(guide: Guide) -> None:
    guide.follow()
    shown = guide.pytest()
    assert "test_dead_channels_groups_and_widths_can_go[0-ernie4_5-tied] PASSED" in shown
    assert "test_shrink_gives_the_shape_and_never_a_worse_repair[ernie4_5] PASSED" in shown


def test_a_package_of_its_own(guide: Guide, small_recipe: Any) -> None:
    assert guide.install(FILE) == ["stillroom_ernie.py"]
    prune_and_export(guide, small_recipe, "site")


def test_a_layout_that_is_wrong_is_not_accepted(guide: Guide, small_recipe: Any) -> None:
    """What the page promises of export: a mistake in the file is found."""
    guide.follow()
    file = guide.folder / FILE
    wrong = file.read_text(encoding="utf-8").replace('GgufLayout("ernie4_5")', 'GgufLayout("ernie4_5", permuted=True)')
    assert "permuted" in wrong
    file.write_text(wrong, encoding="utf-8")
    with pytest.raises(AssertionError, match="ExportMismatch"):
        prune_and_export(guide, small_recipe, "src")
