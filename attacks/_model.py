"""Small models from elsewhere for the attacks on import, templates and terms: written byte by byte."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from attacks.case import Attack
from stillroom.inspection.inspect import require_safe
from stillroom.inspection.template import render_chat
from stillroom.recipe.recipe import Recipe
from stillroom.runs.run import Run
from stillroom.terms.gate import Verdict, pass_gate

TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
MESSAGES = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Good day."}]
STRING, ARRAY, UINT32 = 8, 9, 4


def safetensors(header: dict[str, Any] | bytes | None = None, data: bytes = bytes(32)) -> bytes:
    """A safetensors file; by default with two tensors of 16 bytes."""
    if header is None:
        header = {
            "a.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
            "b.weight": {"dtype": "F32", "shape": [4], "data_offsets": [16, 32]},
        }
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def model(folder: Path, **content: bytes | str | dict[str, Any]) -> Path:
    """A Hugging Face folder; ``content`` replaces or adds files, with ``__`` for a dot in their names."""
    place = folder / "model"
    place.mkdir(parents=True, exist_ok=True)
    written: dict[str, Any] = {
        "config.json": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64},
        "generation_config.json": {"eos_token_id": 2},
        "tokenizer_config.json": {"eos_token": "</s>", "chat_template": TEMPLATE},
        "tokenizer.json": {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}},
        "model.safetensors": safetensors(),
        "README.md": "---\nlicense: apache-2.0\n---\n# A model\n",
    }
    written |= {name.replace("__", "."): value for name, value in content.items()}
    for name, value in written.items():
        data = json.dumps(value).encode() if isinstance(value, dict) else value
        (place / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return place


def text(value: str | bytes) -> bytes:
    """A text the way GGUF writes it."""
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def key(name: str, kind: int, value: bytes) -> bytes:
    """A key and its value the way GGUF writes them."""
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    """An entry of GGUF's list of tensors."""
    sizes = b"".join(struct.pack("<Q", size) for size in shape)
    return text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


def gguf(
    keys: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    *,
    counts: tuple[int, int] | None = None,
    data: bytes = bytes(64),
) -> bytes:
    """A GGUF file; by default with a licence, a chat template and two tensors of 16 bytes."""
    if keys is None:
        keys = plain_keys()
    if tensors is None:
        tensors = [tensor("a.weight"), tensor("b.weight", offset=32)]
    numbers = counts or (len(tensors), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", 3, *numbers) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


def plain_keys() -> list[bytes]:
    """Metadata of an ordinary file."""
    tokens = [text(token) for token in ("a", "b", "c")]
    return [
        key("general.architecture", STRING, text("llama")),
        key("general.license", STRING, text("apache-2.0")),
        key("general.alignment", UINT32, struct.pack("<I", 32)),
        key("tokenizer.chat_template", STRING, text(TEMPLATE)),
        key("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, 3) + b"".join(tokens)),
        key("tokenizer.ggml.scores", ARRAY, struct.pack("<IQ", 6, 3) + struct.pack("<fff", 1, 2, 3)),
    ]


def proto(number: int, value: bytes | str | int) -> bytes:
    """One field of a protobuf message: a number, or bytes with their length."""

    def varint(rest: int) -> bytes:
        head = bytearray()
        while rest > 127:
            head.append(rest & 127 | 128)
            rest >>= 7
        return bytes([*head, rest])

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


def onnx(location: str | None = "model.onnx.data", offset: int = 0, length: int = 16, more: bytes = b"") -> bytes:
    """An ONNX graph of one tensor of four numbers, which lies in another file unless ``location`` is None."""
    places = {"location": location, "offset": str(offset), "length": str(length)} if location is not None else {}
    entries = b"".join(proto(13, proto(1, name) + proto(2, str(value))) for name, value in places.items())
    held = proto(14, 1) if places else proto(9, bytes(16))
    tensor_ = proto(1, 4) + proto(2, 1) + proto(8, "w") + entries + held + more
    return proto(1, 10) + proto(7, proto(2, "g") + proto(5, tensor_)) + proto(8, proto(1, "") + proto(2, 20))


def look_at_gguf(folder: Path, content: bytes) -> None:
    """Write a GGUF file and look it over."""
    (folder / "model.gguf").write_bytes(content)
    require_safe(folder / "model.gguf")


def works_folder(folder: Path) -> None:
    """An ordinary folder passes."""
    require_safe(model(folder))


def works_gguf(folder: Path) -> None:
    """An ordinary GGUF file passes."""
    look_at_gguf(folder, gguf())


def works_template(_: Path) -> None:
    """An ordinary template renders."""
    if render_chat(TEMPLATE, MESSAGES) != "user: Hello.\nassistant: Good day.\n":
        raise AssertionError("the template renders otherwise")


def render(template: str) -> str:
    """Render a template as the corpus does."""
    return render_chat(template, MESSAGES, where="the teacher")


def hostile_template(template: str, says: str) -> Attack:
    """An attack that is one template: rendering it is refused with these words."""
    return Attack(threat="template", says=says, works=works_template, attack=lambda _: render(template))


def hostile_folder(files: dict[str, bytes | str | dict[str, Any]], says: str, threat: str = "import") -> Attack:
    """An attack that is an ordinary model's folder with some files added or exchanged: it is refused with these words."""
    return Attack(
        threat=threat, says=says, works=works_folder, attack=lambda folder: require_safe(model(folder, **files))
    )


def hostile_gguf(content: bytes, says: str) -> Attack:
    """An attack that is one GGUF file: it is refused with these words."""
    return Attack(threat="import", says=says, works=works_gguf, attack=lambda folder: look_at_gguf(folder, content))


def hostile_teacher(files: dict[str, bytes | str | dict[str, Any]], says: str, **sections: Any) -> Attack:
    """An attack that is a teacher's folder with some files exchanged: the gate refuses it with these words."""
    return Attack(
        threat="terms",
        says=says,
        works=works_terms,
        attack=lambda folder: gate(folder, model(folder, **files), **sections),
    )


def gate(folder: Path, teacher: Path | None = None, **sections: Any) -> Verdict:
    """Bring a recipe to the gate: nothing is captured, trained or packaged before it."""
    settings: dict[str, Any] = {
        "name": "student",
        "corpus": {"sources": [{"kind": "python_docs"}]},
        "teacher": {"kind": "huggingface", "name": str(teacher or model(folder))},
    }
    return pass_gate(Run.create(Recipe.model_validate(settings | sections), folder / "runs"))


def works_terms(folder: Path) -> None:
    """A teacher under Apache-2.0 is allowed."""
    gate(folder)


def llama_2(folder: Path, **content: Any) -> Path:
    """A teacher whose terms forbid to train other models."""
    return model(folder, README__md="---\nlicense: llama2\n---\n", **content)


OWN = {"subject": "teacher", "kind": "own", "decided_by": "Mallory", "decided_at": "2026-11-24T00:00:00Z"}
"""A decision that a model is one's own."""


def gate_with(folder: Path, teacher: dict[str, Any]) -> Verdict:
    """Bring a recipe with this section `teacher` to the gate."""
    settings = {"name": "student", "corpus": {"sources": [{"kind": "python_docs"}]}, "teacher": teacher}
    return pass_gate(Run.create(Recipe.model_validate(settings), folder / "runs"))


def llama_3(folder: Path) -> Verdict:
    """A student of Llama 3.1, with every text that it has to carry."""
    texts = {}
    for name in ("Llama-3.1-Community-License", "Llama-3.1-Acceptable-Use-Policy"):
        (folder / f"{name}.txt").write_text("The words of Meta as they stand at their source.")
        texts[name] = str(folder / f"{name}.txt")
    teacher = model(folder, README__md="---\nlicense: llama3.1\n---\n")
    return gate(folder, teacher, terms={"licence_texts": texts})


def permission(folder: Path, **changes: Any) -> Path:
    """A written permission for Llama 2, with a copy of its text."""
    import hashlib

    import yaml

    letter = "Dear operator, you may train one student on the outputs of Llama 2."
    (folder / "letter.txt").write_text(letter)
    content = {
        "format": 1,
        "granted_by": "Meta Platforms, Inc., by its counsel",
        "granted_to": "The operator",
        "granted_on": "2025-01-15",
        "covers": ["llama-2"],
        "scope": "one student on the outputs of Llama 2",
        "purpose": "commercial",
        "text": "letter.txt",
        "text_sha256": hashlib.sha256(letter.encode()).hexdigest(),
    }
    path = folder / "permission.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


def works_permission(folder: Path) -> None:
    """With the owner's permission it is allowed."""
    gate(folder, llama_2(folder), terms={"permissions": [str(permission(folder))]})
