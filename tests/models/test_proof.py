"""Every kind of causal model is run rightly, packed or by rows, or refused by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_model

from benchmarks.models import LENGTHS, SAME, compare
from benchmarks.tiny_configs import tiny_config, tiny_model
from benchmarks.tiny_files import tokenizer
from stillroom.core.errors import TeacherError, UnsupportedModel
from stillroom.core.extras import installed
from stillroom.models import proof as proofs
from stillroom.models.forward import hidden_states, logits_from_hidden, output_head, way_of
from stillroom.models.kinds import kind_of
from stillroom.models.load import load_student, load_teacher
from stillroom.models.passes import WAY, Way, states
from stillroom.models.proof import prove
from stillroom.recipe.teacher import HuggingFaceTeacher

PACKED = ("llama", "gemma3_text", "cohere", "stablelm", "deepseek_v2", "llama4_text", "modernbert-decoder", "granite")
BY_ROW = ("bloom", "mamba", "qwen3_next", "gpt_oss", "lfm2", "falcon_h1", "recurrent_gemma", "opt")


def build(family: str) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return tiny_model(tiny_config(family), AutoModelForCausalLM)


@pytest.mark.parametrize("family", PACKED + BY_ROW)
def test_packed_sequences_give_what_single_documents_give(family: str) -> None:
    model = build(family)
    found = prove(model, again=True)
    assert found.way.packed == (family in PACKED)
    assert bool(found.way.reason) == (family in BY_ROW)
    for lengths in LENGTHS:
        assert compare(model, model, lengths) <= SAME


def test_a_wrong_way_is_seen() -> None:
    """The comparison that the tests above stand on tells a wrong way from a right one."""
    for family in ("bloom", "mamba", "lfm2"):
        model = build(family)
        setattr(model, WAY, Way(packed=True, blocks=False))
        assert compare(model, model, LENGTHS[0]) > 0.05, family
    cohere = build("cohere")
    prove(cohere)
    setattr(cohere, WAY, Way())
    assert compare(cohere, cohere, LENGTHS[0]) > 0.05


def test_what_the_family_does_to_logits_is_found() -> None:
    assert output_head(build("cohere")).scale == 0.0625
    assert output_head(build("recurrent_gemma")).softcap == 30.0
    assert output_head(build("granite")).scale == 0.5
    assert way_of(build("modernbert-decoder")).at_output_layer


def test_a_model_whose_logits_are_more_than_a_product_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "SCALES", ())
    with pytest.raises(UnsupportedModel, match=r"`cohere`.*output matrix differ"):
        prove(build("cohere"), again=True)


def test_a_model_that_sees_later_tokens_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"`bert`.*not causal"):
        from transformers import AutoConfig, BertLMHeadModel

        config = AutoConfig.for_model(
            "bert", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=211
        )
        prove(BertLMHeadModel(config).eval(), again=True)


def test_numbers_that_are_not_finite_are_refused() -> None:
    model = build("llama")
    model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(UnsupportedModel, match="not finite"):
        prove(model, again=True)


def test_weights_that_tell_nothing_are_run_by_row() -> None:
    model = build("llama")
    for parameter in model.parameters():
        parameter.data.zero_()
    assert not prove(model, again=True).way.packed
    deaf = build("llama")
    for layer in deaf.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
    assert not prove(deaf, again=True).way.packed
    assert prove(build("llama")).way.packed  # neither was remembered for the config


def test_a_proof_leaves_the_model_as_it_was() -> None:
    model = build("lfm2").train()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    prove(model, again=True)
    assert torch.equal(torch.rand(1), expected)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.get_output_embeddings().__dict__.get("forward") is None


def test_whoever_listens_gets_nothing_of_a_proof() -> None:
    """Pruning catches what layers take while a model runs that was not proved yet: it must be of its own text alone."""
    model = build("llama")
    layer = model.base_model.layers[0]
    heard: list[str] = []

    def stand_in(*values: torch.Tensor, **others: object) -> torch.Tensor:
        heard.append("forward")
        return type(layer).forward(layer, *values, **others)

    layer.forward = stand_in
    handles = [
        layer.register_forward_hook(lambda *_: heard.append("after")),
        layer.self_attn.register_forward_pre_hook(lambda *_: heard.append("before")),
    ]
    prove(model, again=True)
    assert heard == []
    model(input_ids=torch.tensor([[1, 2, 3]]))
    assert heard == ["forward", "before", "after"]
    for handle in handles:
        handle.remove()
    model(input_ids=torch.tensor([[1, 2, 3]]))
    assert heard[3:] == ["forward"]


def test_a_copy_is_run_as_its_original() -> None:
    model = build("mamba")
    way = prove(model).way
    assert copy.deepcopy(model).stillroom_way == way


def test_rows_have_gradients() -> None:
    model = build("bloom")
    ids = torch.randint(3, 200, (2, 40), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(25), torch.arange(15)]).expand(2, -1)
    hidden = hidden_states(model, ids, positions)
    hidden[:, 25:].square().sum().backward()
    grad = model.get_input_embeddings().weight.grad
    assert grad is not None
    seen = set(ids[:, 25:].flatten().tolist())
    assert all(bool(grad[token].any()) for token in seen)
    assert not any(bool(grad[token].any()) for token in set(ids[:, :25].flatten().tolist()) - seen)


def test_positions_that_begin_elsewhere_are_not_guessed() -> None:
    model = build("bloom")
    with pytest.raises(ValueError, match="begin at 0"):
        hidden_states(model, torch.ones(1, 8, dtype=torch.long), torch.arange(4, 12)[None])


def test_half_precision_is_judged_by_its_own_measure() -> None:
    for family, packed in (("llama", True), ("lfm2", False), ("qwen3_moe", True)):
        model = build(family).to(torch.bfloat16)
        assert prove(model, again=True).way.packed == packed


def test_in_sixteen_bits_a_single_position_tells_nothing_and_several_do() -> None:
    """Rounding changed one position of 40 by 1.2 standard deviations, on one CPU, and nothing else; a packed student was then
    run document by document, at half the speed."""

    def error(*changed: float, single: bool = False) -> float:
        expected = torch.zeros(40, 16)
        found = expected.clone()
        found[: len(changed)] = torch.tensor(changed)[:, None]
        return proofs.position_error(found, expected, 1.0, routed=False, coarse=True, single=single)

    assert error(1.2) == 0.0
    assert error(1.2, single=True) > proofs._SAME_COARSE  # a token that is seen too early changes single positions
    assert error(0.2, 0.2, 0.2) > proofs._SAME_COARSE  # what a short convolution leaks from the document before
    assert error(*[0.1] * 40) == pytest.approx(0.1)


def test_blocks_are_used_only_for_plain_attention() -> None:
    assert way_of(make_model("llama", rows=300)).blocks
    for family in ("doge", "stablelm", "gpt_oss", "deepseek_v2", "nemotron"):
        assert not way_of(build(family)).blocks, family


@pytest.mark.parametrize(
    "family", ["t5", "bart", "bert", "roberta", "cpmant", "xlnet", "vit", "whisper", "blt", "nobodys"]
)
def test_what_is_no_causal_model_is_refused_from_its_config(family: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, "auto_map": {"AutoModel": "code.Model"}}))
    with pytest.raises(UnsupportedModel, match=f"`{family}`"):
        kind_of(tmp_path)


def test_tensors_that_the_class_of_a_family_does_not_use_are_said(tmp_path: Path) -> None:
    model = build("qwen3_next")
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"mtp.fc.weight": torch.ones(4, 4)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    notes = load_teacher(HuggingFaceTeacher(name=str(tmp_path)), "cpu", torch.float32).notes
    assert any("does not use mtp.fc.weight" in note for note in notes)


def test_a_part_that_is_not_taken_must_be_whole_too(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    tiny_model(tiny_config("gemma3"), AutoModelForImageTextToText).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "vision" in name)
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TeacherError, match=r"vision.* holds 1 of .* not finite"):
        load_teacher(HuggingFaceTeacher(name=str(tmp_path)), "cpu", torch.float32)


@pytest.mark.skipif(installed("timm"), reason="timm is installed")
def test_an_encoder_of_images_that_needs_timm_is_refused_from_the_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3n"}))
    with pytest.raises(UnsupportedModel, match=r"`gemma3n` .* package timm"):
        kind_of(tmp_path)


def test_a_class_for_text_alone_is_taken_where_the_config_names_it(tmp_path: Path) -> None:
    for architecture, inside in (("Llama4ForConditionalGeneration", "llama4_text"), ("Llama4ForCausalLM", None)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama4", "architectures": [architecture]}))
        assert kind_of(tmp_path).inside == inside


def test_an_encoder_that_says_it_is_a_decoder_may_try(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "is_decoder": True}))
    assert kind_of(tmp_path).inside is None


@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl_moe", "mistral3", "qwen2_5_vl", "llama4", "emu3"])
def test_the_language_model_is_taken_out_of_a_vision_model(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    config = tiny_config(family)
    whole = tiny_model(config, AutoModelForImageTextToText)
    whole.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    teacher = load_teacher(HuggingFaceTeacher(name=str(tmp_path)), "cpu", torch.float32)
    assert family in teacher.notes[0]
    assert teacher.family == teacher.model.config.model_type != family
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        expected = whole(input_ids=ids, use_cache=False).logits
        found = logits_from_hidden(teacher.model, hidden_states(teacher.model, ids, torch.arange(40)[None]))
    assert float((found - expected).abs().max() / expected.std()) < SAME
    teacher.model.save_pretrained(tmp_path / "text")
    tokenizer().save_pretrained(tmp_path / "text")
    again, _ = load_student(tmp_path / "text", torch.float32)
    with torch.no_grad():
        assert torch.allclose(
            states(again.eval(), Way(), ids, None), states(teacher.model, Way(), ids, None), atol=1e-5
        )
