"""One suspect, one owner, the base check, and the match that finds what the exact test cannot."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.core.errors import StillroomError, UsageError
from stillroom.guard import lineage_examine
from stillroom.guard.lineage_examine import examine, independent_models, open_owner
from stillroom.guard.lineage_match import Activity, activity_of, default_text, matched_share

WORDS = " ".join(default_text().split()[:300])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("base"), layers=2, seed=1)


def disguised(folder: Path, target: Path) -> Path:
    """The same function: units shuffled, the stream rotated (norms folded in), up and down rows rescaled."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(7)
    width = model.config.hidden_size
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    model.model.embed_tokens.weight.data = model.model.embed_tokens.weight.data @ turn
    readers = []
    for layer in model.model.layers:
        order = torch.randperm(model.config.intermediate_size, generator=generator)
        scale = torch.rand(len(order), generator=generator) + 0.5
        mlp = layer.mlp
        mlp.gate_proj.weight.data = mlp.gate_proj.weight.data[order]
        mlp.up_proj.weight.data = mlp.up_proj.weight.data[order] * scale[:, None]
        mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, order] / scale
        attention = layer.self_attn
        readers += [(m, layer.input_layernorm) for m in (attention.q_proj, attention.k_proj, attention.v_proj)]
        readers += [(m, layer.post_attention_layernorm) for m in (mlp.gate_proj, mlp.up_proj)]
        for matrix in (attention.o_proj, mlp.down_proj):
            matrix.weight.data = turn.T @ matrix.weight.data
    readers.append((model.lm_head, model.model.norm))
    for matrix, norm in readers:
        matrix.weight.data = (matrix.weight.data * norm.weight.data) @ turn
    for norm in {norm for _, norm in readers}:
        norm.weight.data.fill_(1.0)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    return target


def test_the_adversary_s_disguise_is_told_by_match_and_by_nothing_exact(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = tiny_model("llama", tmp_path / "owner", layers=2, seed=5, tied=False)
    suspect = disguised(owner, tmp_path / "suspect")
    controls = tmp_path / "controls"
    for seed in range(6, 9):
        tiny_model("llama", controls / str(seed), layers=2, seed=seed, tied=False)
    # With three controls, being first says nothing.
    order, match = examine(suspect, open_owner(owner), controls=controls, text=WORDS).findings
    assert (order.grade, order.verdict) == ("A", "cannot tell")
    assert match.verdict == "cannot tell"
    assert any("at least 39" in text for text in match.cannot_conclude)
    # As many as are needed.
    monkeypatch.setattr(lineage_examine, "LEAST_CONTROLS", 3)
    _, match = examine(suspect, open_owner(owner), controls=controls, text=WORDS).findings
    assert match.verdict == "more alike than all controls"
    assert match.log10_p is None
    assert match.rank is not None
    assert (match.rank.rank, match.rank.of) == (1, 4)
    assert float(str(match.statistic["matched_share"])) > 0.9
    # An independent model is in the crowd.
    stranger = tiny_model("llama", tmp_path / "stranger", layers=2, seed=9, tied=False)
    share, _ = matched_share(activity_of(stranger, WORDS), activity_of(owner, WORDS))
    assert share < 0.3


def tuned(folder: Path, target: Path, seed: int) -> Path:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.1 * parameter.data.std() * torch.randn_like(parameter)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    return target


def test_two_tunes_of_one_base_are_one_family_and_no_more(base: Path, tmp_path: Path) -> None:
    owner, other = tuned(base, tmp_path / "owner", 1), tuned(base, tmp_path / "other", 2)
    (finding,) = examine(other, open_owner(owner), base=base, match=False).findings
    assert finding.verdict == "same family"
    assert "the training run of the base" in finding.null
    # Without the base nobody can know: the base itself would be accused.
    for suspect in (other, base):
        made = examine(suspect, open_owner(owner), match=False)
        assert made.findings[0].verdict == "derived, or same family"
        assert any("--base" in note for note in made.notes)
    # Who trained from fresh weights says so.
    made = examine(owner, replace(open_owner(base), from_base=False), match=False)
    assert made.findings[0].verdict == "derived"
    assert made.notes == []
    # The very same weights are named as such, whatever the folder is called.
    made = examine(base, open_owner(shutil.copytree(base, tmp_path / "copy")), match=False)
    assert any("byte for byte" in note for note in made.notes)


def test_a_run_knows_its_base(tiny_run: Path) -> None:
    """A pruned student has the order of its teacher's units."""
    owner = open_owner(tiny_run)
    assert owner.base is not None
    assert owner.base.name == "teacher"
    (finding,) = examine(owner.base, owner, match=False).findings
    assert finding.verdict == "same family"
    # Its base may not be here: a hub's name, or a file that is gone. The student's units are in its order all the same.
    (finding,) = examine(owner.base, replace(owner, base=None), match=False).findings
    assert finding.verdict == "same family"
    assert finding.commitment is None


@pytest.mark.parametrize(
    ("kind", "randomness", "expected"),
    [
        ("shrink", {"kind": "secret", "commitment": "a" * 64}, ("A", "same family", None)),
        ("fresh", {"kind": "secret", "commitment": "a" * 64}, ("A", "derived", "a" * 64)),
        ("fresh", {"kind": "seed", "commitment": None}, ("C", "same units, which proves nothing here", None)),
    ],
)
def test_a_package_says_where_its_units_come_from(
    base: Path, tmp_path: Path, kind: str, randomness: dict[str, object], expected: tuple[object, ...]
) -> None:
    shutil.copytree(base, tmp_path / "weights" / "hf")
    (tmp_path / "policy.json").write_text("{}")
    definition = {
        "externalParameters": {"recipe": {"student": {"kind": kind}}},
        "internalParameters": {"randomness": randomness},
    }
    (tmp_path / "provenance.json").write_text(json.dumps({"predicate": {"buildDefinition": definition}}))
    (finding,) = examine(base, open_owner(tmp_path), match=False).findings
    assert (finding.grade, finding.verdict, finding.commitment) == expected


def test_controls_are_independent_of_what_is_examined_and_of_one_another(base: Path, tmp_path: Path) -> None:
    """A copy among the controls would hide a theft, and one control given forty times would be forty."""
    other = tiny_model("llama", tmp_path / "controls" / "one", layers=2, seed=2)
    examined = {"the suspect": other, "the owner's model": base}
    with pytest.raises(UsageError, match="same weights as the suspect"):
        independent_models(tmp_path / "controls", examined)
    del examined["the suspect"]
    assert independent_models(tmp_path / "controls", examined) == [other]
    twice = shutil.copytree(other, tmp_path / "controls" / "two")
    (twice / "README.md").write_text("another model")
    with pytest.raises(UsageError, match=r"two: this control has the same weights as .*one"):
        independent_models(tmp_path / "controls", examined)


def test_silent_units_match_nothing() -> None:
    """A model of zeros is like none: all of its ties are broken at unit 0, which is no likeness."""
    silent = Activity((np.zeros((8, 70), np.float32),), (np.zeros((8, 70), np.float32),))
    assert matched_share(silent, silent)[0] == 0.0


def test_what_cannot_be_signed_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    command = ["guard", "lineage", str(tmp_path), "--owner", str(tmp_path / "absent"), "--keys", str(tmp_path)]
    shown = CliRunner().invoke(app, command)
    assert "no --output names one" in str(shown.exception)
    shown = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "finding.json")])
    assert isinstance(shown.exception, StillroomError)
    assert "absent" not in str(shown.exception)


def test_the_command_writes_findings(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "finding.json"
    suspect = tuned(base, tmp_path / "suspect", 3)
    command = ["guard", "lineage", str(suspect), "--owner", str(base), "--weights-only", "-o", str(out)]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "derived, or same family (grade A)" in shown.stdout
    assert "p <= 10^-" in shown.stdout
    written = json.loads(out.read_text())
    assert written["predicate"]["findings"][0]["log10_p"] < -100
    assert {subject["name"] for subject in written["subject"]} == {"suspect suspect", f"owner {base.name}"}
