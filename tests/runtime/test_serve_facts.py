"""What a GGUF file says of itself: whether it embeds, its context, and which of its tokens are markup."""

from __future__ import annotations

from pathlib import Path

from gguf import GGUFReader, GGUFWriter

from stillroom.runtime.facts import GgufFacts, read_facts


def written(
    folder: Path,
    kind: str,
    tokens: list[str],
    types: list[int],
    pooling: int | None = None,
    template: str | None = None,
) -> Path:
    path = folder / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if pooling is not None:
        writer.add_uint32("llama.pooling_type", pooling)
        writer.add_context_length(512)
    if template is not None:
        writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_markup_is_what_a_text_must_not_hold(tmp_path: Path) -> None:
    tokens, types = ["a", "<|end|>", "<unk>", "<tool_call>", "<b>", " "], [1, 3, 2, 4, 4, 3]
    template = "{{ '<tool_call>' }}"
    found = read_facts(written(tmp_path, "gpt2", tokens, types, template=template))
    assert found == GgufFacts(False, None, ("<|end|>", "<unk>"), ("<tool_call>",), template)
    assert read_facts(written(tmp_path, "llama", ["<0xC0>"], [6], pooling=1)) == GgufFacts(True, 512)


def test_a_real_vocabulary_is_read_as_the_library_reads_it(tiny_gguf: Path) -> None:
    reader = GGUFReader(tiny_gguf)
    tokens, types = (reader.get_field(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    assert tokens is not None
    assert types is not None
    pairs = zip(tokens.contents(), types.contents(), strict=True)
    assert read_facts(tiny_gguf).control == tuple(text for text, kind in pairs if kind in (2, 3))
