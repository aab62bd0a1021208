"""Quantized teachers: dequantized as their formats say, other teachers than their originals, saved as the floats they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FP8_BLOCK as BLOCK
from tiny_models import make_tokenizer, with_quantization

from stillroom.core.errors import TeacherError, UnsupportedModel
from stillroom.models.load import load_student, load_teacher, quantization_words, save_model, teacher_config
from stillroom.models.stored_as import Quantization, quantization_of
from stillroom.recipe.capture import ThresholdCodec
from stillroom.recipe.teacher import HuggingFaceTeacher
from stillroom.teachers.capture import cache_identity
from stillroom.teachers.local import LocalTeacher

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
FP4 = torch.cat([E2M1, -E2M1])
IDS = torch.randint(5, 300, (1, 24), generator=torch.Generator().manual_seed(0))


def dequantized(folder: Path) -> dict[str, torch.Tensor]:
    """FP8 numbers times the scale of their block, by hand."""
    found = {}
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("_scale_inv"):
            continue
        found[name] = tensor.float()
        if f"{name}_scale_inv" in tensors:
            spread = tensors[f"{name}_scale_inv"].repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
            found[name] = tensor.float() * spread
    return found


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def test_an_fp8_teacher_is_what_its_dequantized_weights_make(fp8: Path, original: Path, tmp_path: Path) -> None:
    loaded = load_teacher(HuggingFaceTeacher(name=str(fp8)), "cpu", torch.float32)
    plain = shutil.copytree(original, tmp_path / "plain")
    save_file(dequantized(fp8), plain / "model.safetensors", metadata={"format": "pt"})
    expected = load_teacher(HuggingFaceTeacher(name=str(plain)), "cpu", torch.float32)
    assert torch.equal(logits(loaded.model), logits(expected.model))
    first = load_teacher(HuggingFaceTeacher(name=str(original)), "cpu", torch.float32)
    assert not torch.equal(logits(loaded.model), logits(first.model))
    assert loaded.quantization == "fp8, 8 bits, blocks of 32 x 32"
    assert any("dequantized" in note for note in loaded.notes)
    assert (first.quantization, first.notes) == (None, ())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_of_it_is_in_the_dtype_that_was_asked_for(fp8: Path, dtype: torch.dtype) -> None:
    """transformers leaves norms and embeddings as the file has them; then nothing computes where bfloat16 is fast."""
    loaded = load_teacher(HuggingFaceTeacher(name=str(fp8)), "cpu", dtype)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {dtype}
    assert bool(torch.isfinite(loaded.model(input_ids=IDS).logits).all())


def test_its_identity_and_record_say_so(fp8: Path, original: Path) -> None:
    def opened(folder: Path) -> LocalTeacher:
        return LocalTeacher.open(HuggingFaceTeacher(name=str(folder)), torch.device("cpu"), torch.float32)

    mine, first = (cache_identity(opened(folder), ThresholdCodec(), 1.0, 0) for folder in (fp8, original))
    assert mine.quantization == "fp8, 8 bits, blocks of 32 x 32"
    assert mine.model_dump(mode="json")["quantization"] == mine.quantization
    assert "quantization" not in first.model_dump(mode="json")  # the names of units are as they were
    assert type(mine).model_validate(mine.model_dump(mode="json")) == mine
    same = first.model_copy(update={"quantization": mine.quantization})
    assert "quantization" in (first.difference(same) or "")
    assert "quantization" in (same.difference(first) or "")
    assert mine.difference(mine) is None
    assert first.difference(first) is None
    assert opened(fp8).record()["quantization"] == mine.quantization
    assert "quantization" not in opened(original).record()


def test_it_is_saved_as_the_floats_it_is(fp8: Path, tmp_path: Path) -> None:
    """transformers alone would quantize every matrix again when it saves, and not say so in the config."""
    teacher = HuggingFaceTeacher(name=str(fp8))
    loaded = load_teacher(teacher, "cpu", torch.float32)
    saved = tmp_path / "student"
    save_model(loaded.model, loaded.tokenizer, saved)
    tensors = load_file(saved / "model.safetensors")
    wanted = dequantized(fp8)
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)
    assert "quantization" not in (saved / "config.json").read_text()
    assert "quantization" not in json.dumps(teacher_config(teacher).to_dict(), default=str)
    assert torch.equal(logits(load_student(saved, torch.float32)[0].eval()), logits(loaded.model))


@pytest.mark.parametrize("mistake", ["no scales", "blocks"])
def test_an_fp8_teacher_that_would_be_read_wrongly_is_refused_by_name(fp8: Path, mistake: str) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(fp8 / "model.safetensors")
    if mistake == "no scales":
        del tensors[f"{name}_scale_inv"]
        save_file(tensors, fp8 / "model.safetensors", metadata={"format": "pt"})
    else:  # 128 rows: two blocks, of 96 and of 32, which transformers takes for two of 64
        scales = tensors[f"{name}_scale_inv"]
        tensors[f"{name}_scale_inv"] = scales[:2].contiguous()
        save_file(tensors, fp8 / "model.safetensors", metadata={"format": "pt"})
        said = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [96, BLOCK]}
        with_quantization(fp8, said)
    with pytest.raises((TeacherError, UnsupportedModel), match=r"_proj\.weight") as refused:
        load_teacher(HuggingFaceTeacher(name=str(fp8)), "cpu", torch.float32)
    assert ("scales" if mistake == "no scales" else "blocks of 96 x 32") in str(refused.value)


def test_an_mxfp4_teacher_is_what_its_dequantized_weights_make(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    words = make_tokenizer("bpe", 320)
    config = AutoConfig.for_model(
        "gpt_oss", vocab_size=len(words), hidden_size=64, intermediate_size=64, num_hidden_layers=2, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, sliding_window=16,
        max_position_embeddings=2048, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    plain, packed = tmp_path / "plain", tmp_path / "mxfp4"
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(plain)
    words.save_pretrained(plain)
    shutil.copytree(plain, packed)
    floats, stored = load_file(plain / "model.safetensors"), {}
    for name, tensor in list(floats.items()):
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[name] = tensor
            continue
        experts, columns, rows = tensor.shape  # stored turned round: one row for each output
        nibbles = torch.randint(0, 16, (experts, rows, columns // 32, 32))
        exponents = torch.randint(118, 124, (experts, rows, columns // 32), dtype=torch.uint8)
        stored[f"{name}_blocks"] = (nibbles[..., 0::2] | nibbles[..., 1::2] << 4).to(torch.uint8)
        stored[f"{name}_scales"] = exponents
        values = FP4[nibbles] * 2.0 ** (exponents.float()[..., None] - 127)
        floats[name] = values.flatten(2).transpose(1, 2).contiguous()
    save_file(floats, plain / "model.safetensors", metadata={"format": "pt"})
    save_file(stored, packed / "model.safetensors", metadata={"format": "pt"})
    with_quantization(packed, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]})
    loaded = load_teacher(HuggingFaceTeacher(name=str(packed)), "cpu", torch.float32)
    expected = load_teacher(HuggingFaceTeacher(name=str(plain)), "cpu", torch.float32)
    assert torch.equal(logits(loaded.model), logits(expected.model))
    assert loaded.quantization == "mxfp4, 4 bits, groups of 32"
    save_model(loaded.model, loaded.tokenizer, tmp_path / "student")
    saved = load_file(tmp_path / "student" / "model.safetensors")
    assert saved.keys() == floats.keys()
    assert all(torch.equal(saved[name], floats[name]) for name in floats)
    assert "quantization" not in (tmp_path / "student" / "config.json").read_text()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"quant_method": "fp8"}, "fp8, 8 bits, blocks of 128 x 128"),
        ({"quant_method": "fp8", "weight_block_size": None}, "fp8, 8 bits"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq, 4 bits, groups of 128"),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, "gptq, 4 bits"),
        ({"load_in_4bit": True}, "bitsandbytes, 4 bits"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {"weights": {"num_bits": 4, "group_size": 64}}},
            },
            "compressed-tensors, 4 bits, groups of 64",
        ),
    ],
)
def test_words(said: dict[str, Any], words: str) -> None:
    found = quantization_of({"quantization_config": said})
    assert found is not None
    assert found.words == words
    assert quantization_of({}) is None
    assert quantization_of({"quantization_config": "gptq"}) == Quantization("", None)


def test_words_of_a_folder(fp8: Path, original: Path) -> None:
    found = [quantization_words(HuggingFaceTeacher(name=str(folder))) for folder in (fp8, original)]
    assert found == ["fp8, 8 bits, blocks of 32 x 32", None]


@pytest.mark.longer
def test_a_run_from_an_fp8_teacher_says_so_and_makes_a_student_of_floats(
    fp8: Path, small_recipe: Any, tmp_path: Path
) -> None:
    from stillroom.packages.provenance import dependencies
    from stillroom.pipeline import finish, run
    from stillroom.recipe.recipe import Recipe
    from stillroom.runs.run import Run

    settings = small_recipe(
        fp8, student={"kind": "shrink", "intermediate_size": 64}, export={"gguf": []}, baseline=False
    )
    settings["corpus"] |= {"train_tokens": 256, "heldout_tokens": 128}
    settings["evaluate"] |= {"measures": ["fidelity", "cost"]}
    made: Run = run(Recipe.model_validate(settings), tmp_path, quiet=True)
    finish(made)
    words = "fp8, 8 bits, blocks of 32 x 32"
    summary = json.loads((made.path / "summary.json").read_text())
    assert summary["teacher"]["quantization"] == words
    assert summary["teacher"]["kl_to_original"] is None
    for page in ("report.html", "report.md"):
        shown = (made.path / page).read_text()
        assert words in shown
        assert "KL to that one not measured" in shown
    named = dependencies(made, summary)[0]
    assert named["annotations"]["quantization"] == words
    manifest = json.loads(next((made.path / "capture").rglob("manifest.json")).read_text())
    assert manifest["identity"]["quantization"] == words
    for stage in ("shrink", "distill"):
        model = made.path / stage / "model"
        assert "quantization" not in (model / "config.json").read_text()
        assert {str(tensor.dtype) for tensor in load_file(model / "model.safetensors").values()} <= {
            "torch.float32",
            "torch.bfloat16",
        }
