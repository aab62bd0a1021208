"""Teachers are loaded whole, say what they are, and are refused with a reason when they are not what they should be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, tiny_model

from stillroom.core.errors import (
    InspectionRefused,
    MissingDependency,
    StillroomError,
    SwitchedOff,
    TeacherError,
    UnsupportedModel,
)
from stillroom.core.files import digest_file
from stillroom.formats.gguf_file import write_gguf
from stillroom.models.gguf_source import gguf_path
from stillroom.models.load import (
    config_parameters,
    count_parameters,
    load_student,
    load_teacher,
    load_tokenizer,
    model_folder,
    save_model,
    stated_licence,
    teacher_identity,
)
from stillroom.models.tokenizer import open_tokenizer, tokenizer_digest
from stillroom.recipe.teacher import GgufTeacher, HuggingFaceTeacher
from stillroom.switch import Switch

TEXT = "Hello 12345 wörld\n  def f(x): return 'x'"
IDS = torch.randint(5, 400, (1, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny_model("llama", tmp_path_factory.mktemp("models") / "tiny", layers=2)
    (made / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    return made


@pytest.fixture(scope="module")
def gguf(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(folder, target, "F32", name="Tiny", licence="MIT")
    return target


@pytest.fixture
def mine(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(folder, tmp_path / "mine")


def teacher(folder: Path, **more: str) -> HuggingFaceTeacher:
    return HuggingFaceTeacher(name=str(folder), **more)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# Tiny\n", "apache-2.0"),
        ("\ufeff---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0"),
        ("---\nlicense: other\nlicense_name: tiny-licence\n---\n", "tiny-licence"),
        ("# Tiny\n\nIts data:\n\n```yaml\nlicense: mit\n```\n", None),
        ("---\nlanguage: en\n---\n\nlicense: mit\n", None),
        ("---\nlicense: [unclosed\n---\n", None),
    ],
)
def test_a_licence_is_read_from_the_front_matter_alone(mine: Path, card: str, licence: str | None) -> None:
    (mine / "README.md").write_text(card, encoding="utf-8")
    assert stated_licence(teacher(mine)) == licence


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", 5),
        ("architectures", [["LlamaForCausalLM"]]),
        ("dtype", {}),
        ("dtype", -1),
        ("head_dim", 0),
        ("head_dim", -1),
        ("hidden_act", "text"),
        ("intermediate_size", 10**30),
        ("num_hidden_layers", 10**9),
        ("num_attention_heads", -1),
    ],
)
def test_a_config_that_no_model_has_is_refused_where_it_is_only_counted(mine: Path, key: str, value: Any) -> None:
    said = json.loads((mine / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps(said | {key: value}))
    with pytest.raises(TeacherError, match=r"config\.json|no model of the family"):
        config_parameters(teacher(mine))


def test_a_folder_is_loaded_with_what_it_is(folder: Path) -> None:
    loaded = load_teacher(teacher(folder), "cpu", torch.float32)
    assert (loaded.name, loaded.family, loaded.licence) == ("tiny", "llama", "apache-2.0")
    assert loaded.stored_bytes == (folder / "model.safetensors").stat().st_size
    assert loaded.parameters == count_parameters(loaded.model) > 0
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tokenizer_digest == tokenizer_digest(load_tokenizer(teacher(folder)))
    assert loaded.model.dtype == torch.float32
    assert load_teacher(teacher(folder), "cpu", torch.bfloat16).model.dtype == torch.bfloat16


def test_a_gguf_says_what_the_folder_says_that_it_was_written_from(folder: Path, gguf: Path) -> None:
    one = load_teacher(teacher(folder), "cpu", torch.float32)
    other = load_teacher(GgufTeacher(path=str(gguf)), "cpu", torch.float32)
    assert torch.allclose(logits(one.model), logits(other.model), atol=1e-4)
    assert other.tokenizer(TEXT)["input_ids"] == one.tokenizer(TEXT)["input_ids"]
    assert (other.name, other.family, other.licence) == ("Tiny", "llama", "MIT")
    assert (other.digest, other.stored_bytes) == (digest_file(gguf), gguf.stat().st_size)
    assert teacher_identity(GgufTeacher(path=str(gguf))) == {"teacher": digest_file(gguf)}


def test_a_gguf_teacher_can_be_saved_and_loaded_again(gguf: Path, tmp_path: Path) -> None:
    loaded = load_teacher(GgufTeacher(path=str(gguf)), "cpu", torch.float32)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "saved")
    model, tokenizer = load_student(tmp_path / "saved", torch.float32)
    assert torch.equal(logits(model.eval()), logits(loaded.model))
    assert tokenizer(TEXT)["input_ids"] == loaded.tokenizer(TEXT)["input_ids"]


def test_a_tokenizer_that_was_handed_out_is_the_callers_own(gguf: Path) -> None:
    config = GgufTeacher(path=str(gguf))
    first = load_tokenizer(config)
    first.add_tokens(["<only mine>"])
    assert "<only mine>" not in load_tokenizer(config).get_vocab()


def test_digests_tell_teachers_apart_and_nothing_else_does(folder: Path, mine: Path) -> None:
    assert teacher_identity(teacher(mine)) == teacher_identity(teacher(folder))
    (mine / "README.md").write_text("another card")
    assert teacher_identity(teacher(mine)) == teacher_identity(teacher(folder))
    config = json.loads((mine / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert teacher_identity(teacher(mine)) != teacher_identity(teacher(folder))
    other = tiny_model("llama", mine.parent / "other", layers=2, seed=1)
    digests = [load_teacher(teacher(place), "cpu", torch.float32).digest for place in (folder, mine, other)]
    assert digests[0] == digests[1] != digests[2]


def test_the_recipes_word_on_the_licence_comes_first(folder: Path, gguf: Path, mine: Path) -> None:
    assert stated_licence(teacher(folder, licence="mine")) == "mine"
    assert stated_licence(GgufTeacher(path=str(gguf), licence="mine")) == "mine"
    (mine / "README.md").unlink()
    assert stated_licence(teacher(mine)) is None


def test_what_pads_or_cuts_a_text_does_not_change_the_tokenizers_digest(folder: Path) -> None:
    tokenizer = open_tokenizer(folder)
    before = tokenizer_digest(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer([TEXT, "x"], padding=True, truncation=True, max_length=4)
    assert tokenizer_digest(tokenizer) == before
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert tokenizer_digest(tokenizer) != before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no/such/folder/here", "no such model folder"),
        ("./nothing", "no such model folder"),
        ("/nothing", "no such model folder"),
        ("~/nothing", "no such model folder"),
        ("plain", "no such model folder"),
    ],
)
def test_names_that_are_no_folder_are_refused_without_the_network(name: str, says: str) -> None:
    with pytest.raises(TeacherError, match=says):
        model_folder(name, None)


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> str:
        raise ValueError("no such repository\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(TeacherError, match=r"nor available from the hub \(no such repository\.\)"):
        model_folder("owner/model", None)


def test_a_blocked_download_takes_what_is_here_and_fetches_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_downloads: Switch
) -> None:
    import huggingface_hub

    monkeypatch.setattr("stillroom.models.load.is_on", no_downloads.is_on)
    monkeypatch.setattr("stillroom.models.load.require_on", no_downloads.require_on)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    kept = {"owner/model": str(tmp_path / "model")}

    def snapshot(name: str, *, local_files_only: bool = False, **_: object) -> str:
        assert local_files_only
        return kept[name]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert model_folder("owner/model", None) == tmp_path / "model"
    with pytest.raises(SwitchedOff, match="downloads"):
        model_folder("owner/other", None)


def test_files_of_the_wrong_kind_are_refused(gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="is a file"):
        load_teacher(HuggingFaceTeacher(name=str(gguf)), "cpu", torch.float32)
    with pytest.raises(TeacherError, match=r"no config\.json"):
        load_teacher(teacher(tmp_path), "cpu", torch.float32)
    with pytest.raises(TeacherError, match="no such GGUF file"):
        load_teacher(GgufTeacher(path=str(tmp_path / "none.gguf")), "cpu", torch.float32)
    (tmp_path / "words.gguf").write_text("words")
    with pytest.raises(InspectionRefused, match=r"words\.gguf"):
        load_teacher(GgufTeacher(path=str(tmp_path / "words.gguf")), "cpu", torch.float32)


def test_a_file_inside_a_package_is_found_or_said_to_be_missing() -> None:
    assert gguf_path("package:stillroom/py.typed").name == "py.typed"
    with pytest.raises(TeacherError, match="no such file") as caught:
        gguf_path("package:stillroom/none.gguf")
    assert "no GGUF file" in caught.value.todo
    for name in ("no_such_package_here", "../up", "a.b"):
        with pytest.raises(MissingDependency, match="not installed"):
            gguf_path(f"package:{name}/x.gguf")


def test_an_unsafe_folder_is_refused_before_it_is_opened(mine: Path) -> None:
    (mine / "pytorch_model.bin").write_bytes(b"\x80\x04")
    for load in (lambda: load_teacher(teacher(mine), "cpu", torch.float32), lambda: load_student(mine, torch.float32)):
        with pytest.raises(InspectionRefused, match="pickle"):
            load()


def test_an_unknown_family_is_refused_by_name(mine: Path) -> None:
    config = json.loads((mine / "config.json").read_text()) | {"model_type": "nobodys", "architectures": ["Nobodys"]}
    (mine / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="nobodys"):
        load_teacher(teacher(mine), "cpu", torch.float32)


def test_a_folder_without_weights_or_tokenizer_is_refused(mine: Path) -> None:
    weights = (mine / "model.safetensors").read_bytes()
    (mine / "model.safetensors").unlink()
    with pytest.raises(TeacherError, match="cannot be loaded"):
        load_teacher(teacher(mine), "cpu", torch.float32)
    (mine / "model.safetensors").write_bytes(weights)
    (mine / "tokenizer.json").write_text("{}")
    with pytest.raises(TeacherError, match="tokenizer"):
        load_tokenizer(teacher(mine))


@given(cut=st.floats(0, 1, exclude_max=True))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_gguf_cut_anywhere_is_refused(gguf: Path, tmp_path: Path, cut: float) -> None:
    whole = gguf.read_bytes()
    part = tmp_path / "part.gguf"
    part.write_bytes(whole[: int(cut * len(whole))])
    with pytest.raises(StillroomError):
        load_teacher(GgufTeacher(path=str(part)), "cpu", torch.float32)


LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "low_freq_factor": 1.0}
STRETCHED = {
    "llama3": ("llama", LLAMA3 | {"factor": 32.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
    "llama3 of 8": (
        "llama",
        LLAMA3 | {"factor": 8.0, "high_freq_factor": 2.0, "original_max_position_embeddings": 512},
    ),
    "linear": ("llama", {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0}),
    "yarn": (
        "qwen2",
        {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 512},
    ),
}


@pytest.mark.parametrize("case", [*FAMILIES, *STRETCHED])
def test_a_gguf_of_every_family_written_here_is_read_exactly(case: str, tmp_path: Path) -> None:
    family, rope = STRETCHED.get(case, (case, None))
    made = tiny_model(family, tmp_path / "made", hidden=256 if rope else 64, layers=6 if family == "gemma3_text" else 4)
    if rope:
        config = json.loads((made / "config.json").read_text())
        config |= {"rope_parameters": rope, "max_position_embeddings": 8192}
        (made / "config.json").write_text(json.dumps(config))
    file = tmp_path / "file.gguf"
    write_gguf(made, file, "F32", name="mistral", licence="MIT")
    original, tokenizer = load_student(made, torch.float32)
    other = load_teacher(GgufTeacher(path=str(file)), "cpu", torch.float32)
    ids = torch.randint(5, 400, (1, 300), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = (model(input_ids=ids, use_cache=False).logits for model in (original.eval(), other.model))
    assert torch.allclose(found, expected, atol=1e-4)
    assert other.tokenizer(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert other.tokenizer.decode(other.tokenizer(TEXT)["input_ids"], skip_special_tokens=True) == TEXT
    assert other.tokenizer.chat_template == tokenizer.chat_template
    assert other.tokenizer.eos_token_id == tokenizer.eos_token_id == other.model.config.eos_token_id
    assert other.family == ("llama" if family == "mistral" else family)


def rewritten(gguf: Path, target: Path, *, drop: str = "", add: dict[str, Any] | None = None) -> Path:
    """A copy of a GGUF file without a tensor, or with more keys."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    reader = GGUFReader(gguf)
    writer = GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for entry in reader.fields.values():
        if not entry.name.startswith("GGUF.") and entry.name != "general.architecture":
            inner = entry.types[-1] if entry.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(entry.name, entry.contents(), entry.types[0], sub_type=inner)
    for key, value in (add or {}).items():
        kind = GGUFValueType.STRING if isinstance(value, str) else GGUFValueType.UINT32
        writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        if tensor.name != drop:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize(
    "name", ["blk.1.ffn_up.weight", "output_norm.weight", "token_embd.weight", "blk.0.attn_q.weight"]
)
def test_a_gguf_without_a_tensor_is_refused_by_name(gguf: Path, tmp_path: Path, name: str) -> None:
    file = rewritten(gguf, tmp_path / "less.gguf", drop=name)
    with pytest.raises(TeacherError, match=rf"{name} is missing"):
        load_teacher(GgufTeacher(path=str(file)), "cpu", torch.float32)


def test_a_gguf_with_a_key_that_is_not_known_is_refused_by_name(gguf: Path, tmp_path: Path) -> None:
    for key, value in (
        ("llama.expert_count", 8),
        ("llama.attention.new_kind", 1),
        ("llama.rope.scaling.type", "longrope"),
    ):
        file = rewritten(gguf, tmp_path / f"{key}.gguf", add={key: value})
        with pytest.raises((UnsupportedModel, TeacherError), match=rf"`{key}`|`longrope`"):
            load_teacher(GgufTeacher(path=str(file)), "cpu", torch.float32)
    usual = rewritten(gguf, tmp_path / "usual.gguf", add={"llama.expert_count": 0})
    load_teacher(GgufTeacher(path=str(usual)), "cpu", torch.float32)


def test_a_gguf_with_several_end_tokens_keeps_them(gguf: Path, tmp_path: Path) -> None:
    file = rewritten(gguf, tmp_path / "ends.gguf", add={"tokenizer.ggml.eot_token_id": 7})
    loaded = load_teacher(GgufTeacher(path=str(file)), "cpu", torch.float32)
    assert loaded.model.config.eos_token_id == [loaded.tokenizer.eos_token_id, 7]


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, r"compressed-tensors"),
        ({"bits": 4}, "does not say how"),
        ("gptq", "does not say how"),
    ],
)
def test_quantized_weights_are_refused_by_name_from_the_config_alone(
    folder: Path, tmp_path: Path, said: Any, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "quantized"
    mine.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, mine / name)
    config = json.loads((mine / "config.json").read_text()) | {"quantization_config": said}
    (mine / "config.json").write_text(json.dumps(config))
    (mine / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    monkeypatch.setattr("stillroom.models.load.stored_tensors", lambda *_: pytest.fail("weights were opened"))
    with pytest.raises(UnsupportedModel, match=word) as refused:
        load_teacher(HuggingFaceTeacher(name=str(mine)), "cpu", torch.float32)
    assert "endpoint" in str(refused.value)
    with pytest.raises(UnsupportedModel, match=word):
        load_student(mine, torch.float32)


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_the_same_files_are_proved_once(kind: str, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other weights at the same path are another teacher, whose keys are read and which is proved again."""
    from stillroom.models import proof

    proved: list[int] = []
    prove_it = proof._prove
    monkeypatch.setattr(proof, "_prove", lambda model: (proved.append(1), prove_it(model))[1])
    monkeypatch.setattr(load_module(), "_OPENED", set())
    file = tmp_path / "mine.gguf"

    def opened() -> torch.Tensor:
        if kind == "gguf":
            return logits(load_teacher(GgufTeacher(path=str(file)), "cpu", torch.float32).model)
        return logits(load_teacher(teacher(mine), "cpu", torch.float32).model)

    write_gguf(mine, file, "F32", name="Mine", licence="MIT")
    first = opened()
    assert torch.equal(opened(), first)
    assert len(proved) == 1
    shutil.rmtree(mine)
    tiny_model("llama", mine, layers=1, seed=4)
    write_gguf(mine, file, "F32", name="Mine", licence="MIT")
    assert not torch.equal(opened(), first)
    assert len(proved) == 2


def load_module() -> Any:
    from stillroom.models import load

    return load
