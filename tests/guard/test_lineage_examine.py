"""One suspect, one owner, the base check, and the match that finds what the exact test cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.guard import lineage_examine
from stillroom.guard.lineage_examine import examine, open_owner
from stillroom.guard.lineage_match import activity_of, default_text, matched_share

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
    # Without the base nobody can know, and the note says so.
    made = examine(other, open_owner(owner), match=False)
    assert made.findings[0].verdict == "derived"
    assert any("--base" in note for note in made.notes)


def test_a_run_knows_its_base(tiny_run: Path) -> None:
    """A pruned student has the order of its teacher's units."""
    owner = open_owner(tiny_run)
    assert owner.base is not None
    assert owner.base.name == "teacher"
    (finding,) = examine(owner.base, owner, match=False).findings
    assert finding.verdict == "same family"


def test_the_command_writes_findings(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "finding.json"
    suspect = tuned(base, tmp_path / "suspect", 3)
    command = ["guard", "lineage", str(suspect), "--owner", str(base), "--weights-only", "-o", str(out)]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "derived (grade A)" in shown.stdout
    assert "p <= 10^-" in shown.stdout
    written = json.loads(out.read_text())
    assert written["predicate"]["findings"][0]["log10_p"] < -100
    assert {subject["name"] for subject in written["subject"]} == {"suspect suspect", f"owner {base.name}"}
