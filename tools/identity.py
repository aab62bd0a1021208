"""Digests of everything that a run computes, to prove that a change of the code changes no result.

`python -m tools.identity` makes a tiny run in a temporary folder and prints SHA-256 digests as JSON; `--run FOLDER` takes
the finished stages of an existing run. Save them before a change with `--write FILE`; after it, `--against FILE` names the
parts that differ and exits with 1. Digests depend on the machine and its libraries: compare on one machine only.

What is digested is the values: tensors with name, dtype and shape; metadata of GGUF files; `summary.json`. File headers,
versions, dates, paths, and anything measured with a clock are left out. This program reaches Stillroom by its command line
only, so that it runs unchanged whatever its modules are called.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STAGES = ("corpus", "capture", "shrink", "distill", "baseline", "export", "evaluate")
LEFT_OUT = {
    "bytes_per_position",
    "digest",
    "machine",
    "path",
    "recipe_digest",
    "sha256",
    "speed",
    "stages",
    "version",
}
"""Keys of `summary.json` that depend on the clock, the folder, or how a file begins."""
CLOCK = re.compile(r"seconds|per_second|memory|version|date|time|rss")
"""Words in a key that say the same."""
SEED = 0
THREADS = "1"


def main() -> int:
    """Print, write or compare digests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="digest the finished stages of this run instead of a tiny one")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the digests there")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with digests written before")
    options = parser.parse_args()
    # Before minutes are spent on what could not be written or compared then.
    if options.write is not None and (options.write.is_dir() or not options.write.absolute().parent.is_dir()):
        raise SystemExit(f"--write {options.write}: no file can be written there.")
    try:
        before = None if options.against is None else json.loads(options.against.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"--against {options.against}: {error}") from None
    if options.run is not None:
        found = digests(options.run)
    else:
        with tempfile.TemporaryDirectory(prefix="identity-") as folder:
            found = digests(tiny_run(Path(folder)))
    text = json.dumps(found, indent=2, sort_keys=True) + "\n"
    if options.write is not None:
        options.write.write_text(text, encoding="utf-8")
    if before is None:
        if options.write is None:
            sys.stdout.write(text)
        return 0
    differ = sorted(part for part in found.keys() | before.keys() if found.get(part) != before.get(part))
    for part in differ:
        how = "is new" if part not in before else "is missing" if part not in found else "differs"
        sys.stdout.write(f"{part} {how}\n")
    sys.stdout.write(f"{len(found.keys() | before.keys()) - len(differ)} parts are equal, {len(differ)} differ.\n")
    return 1 if differ else 0


def digests(run: Path) -> dict[str, str]:
    """Digests by part, such as ``distill/model/model.safetensors``, of every finished stage of a run.

    Raises:
        SystemExit: The folder holds no finished stage.
    """
    found: dict[str, str] = {}
    for stage in STAGES:
        folder = run / stage
        if not (folder / "stage.json").is_file():
            continue
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(run).as_posix()
            if path.suffix == ".safetensors":
                found[name] = tensors_digest(path.read_bytes())
            elif path.name.endswith(".safetensors.zst"):
                found[name] = tensors_digest(_unpacked(path))
            elif path.suffix == ".gguf":
                found |= {f"{name}: {part}": digest for part, digest in gguf_digests(path).items()}
    if not found:
        raise SystemExit(f"{run} holds no finished stage of a run.")
    importance = run / "importance.safetensors"
    if importance.is_file():
        found[importance.name] = tensors_digest(importance.read_bytes())
    if (run / "summary.json").is_file():
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        found |= {f"summary.json: {part}": _digest(value) for part, value in sorted(_flat(summary).items())}
    return found


def tensors_digest(data: bytes) -> str:
    """One digest over all tensors of a safetensors file, by name; the order in the file and its metadata do not count."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    total = hashlib.sha256()
    for name, entry in sorted(header.items()):
        begin, end = entry["data_offsets"]
        total.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
        total.update(data[8 + size + begin : 8 + size + end])
    return total.hexdigest()


def gguf_digests(path: Path) -> dict[str, str]:
    """Digests of a GGUF file: one over all tensors, and one for each key of the metadata."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    total = hashlib.sha256()
    for tensor in sorted(reader.tensors, key=lambda tensor: tensor.name):
        shape = [int(size) for size in tensor.shape]
        total.update(json.dumps([tensor.name, tensor.tensor_type.name, shape]).encode())
        total.update(tensor.data.tobytes())
    found = {"tensors": total.hexdigest()}
    for key, field in reader.fields.items():
        # Those of `GGUF.` describe the file itself: its version and its counts.
        if not key.startswith("GGUF.") and not CLOCK.search(key):
            found[key] = _digest([[kind.name for kind in field.types], field.contents()])
    return found


def tiny_run(folder: Path) -> Path:
    """The whole path with a random Llama of 4 layers, in float32 on one thread."""
    # Before torch is imported: so many threads add in one order.
    os.environ |= {"OMP_NUM_THREADS": THREADS, "MKL_NUM_THREADS": THREADS, "TOKENIZERS_PARALLELISM": "false"}
    _write_teacher(folder / "teacher")
    _write_text(folder / "text")
    decision = {"kind": "own", "decided_by": "tools.identity", "decided_at": "2026-11-24T00:00:00Z"}
    recipe = {
        "name": "identity",
        "seed": SEED,
        "compute": {"device": "cpu", "threads": 1},
        "corpus": {
            "sources": [{"kind": "text", "path": "text", "licence": "PSF-2.0"}],
            "sequence_length": 64,
            "train_tokens": 4096,
            "validation_tokens": 256,
            "heldout_tokens": 512,
        },
        "teacher": {"kind": "huggingface", "name": "./teacher", "dtype": "float32"},
        "student": {"kind": "shrink", "layers": 3, "ffn_width": 96},
        "distill": {"batch_tokens": 256, "learning_rate": 1e-3, "precision": "float32"},
        "evaluate": {"speed_tokens": 0, "bootstrap_samples": 200},
        "export": {"gguf": ["F16", "Q8_0"], "check_tokens": 64},
        "chat": {"prompt": None},
        "terms": {"decisions": [decision | {"subject": subject} for subject in ("teacher", "student")]},
    }
    # JSON is YAML too.
    (folder / "identity.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "stillroom", "run", "identity.yaml", "--runs", "runs", "--quiet"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"the tiny run failed:\n{done.stdout}{done.stderr}")
    return folder / "runs" / "identity"


def _topics() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def _write_text(folder: Path) -> None:
    folder.mkdir()
    for number, text in enumerate(_topics()[:40]):
        (folder / f"{number:02}.txt").write_text(text[:800], encoding="utf-8")


def _write_teacher(folder: Path) -> None:
    """A random Llama whose predictions are far from uniform, with a tokenizer of 512 tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    words = PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(512),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        chat_template="{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
        "+ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    model = LlamaForCausalLM(config).to(torch.float32).eval()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.1 * noise)
            else:
                wide = "embed" in name or "lm_head" in name
                parameter.copy_(noise * (0.2 if wide else 1 / math.sqrt(parameter.shape[1])))
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def _tokenizer(size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_topics(), trainer)
    return tokenizer


def _unpacked(path: Path) -> bytes:
    import io

    import zstandard

    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes())) as stream:
        return bytes(stream.read())


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """The numbers of a summary by dotted name, two levels deep, without what is not the same twice."""
    depth = name.count(".") + 1 if name else 0
    if not isinstance(value, dict) or depth == 2:
        return {name: _stable(value)}
    return {
        found: entry
        for key, inner in value.items()
        if _is_stable(key)
        for found, entry in _flat(inner, f"{name}.{key}" if name else key).items()
    }


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stable(inner) for key, inner in value.items() if _is_stable(key)}
    return [_stable(inner) for inner in value] if isinstance(value, list) else value


def _is_stable(key: str) -> bool:
    return key not in LEFT_OUT and not CLOCK.search(key)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


if __name__ == "__main__":
    raise SystemExit(main())
