"""Every causal language model of the installed transformers as a teacher: right, refused by name, or wrong.

    .venv/bin/python -m benchmarks.models [--quick] [--parts types,files,damaged] [--types NAME,NAME] [--work FILE] --json FILE

- **types**: for every family of the causal mapping a tiny random model is written to disk and opened as a teacher. Its
  logits on packed sequences are compared with transformers' own on the single documents (`right`, or `wrong`); a family that is
  refused must be named, from its config alone and within a second after imports (`refused`). What cannot be built here is
  `impossible`, with its reason.
- **files**: the F16 file of a tiny random model of every family that is exported to GGUF, run by llama.cpp and compared with
  PyTorch, with prompts longer than the windows.
- **damaged**: checkpoints with one fault each, generated: every kind of tensor x every fault, in every file.

``files_failed`` and ``damaged_failed`` count families of which nothing could be compared or damaged (`details` has why); the
exit code is 1 where there are any, something is wrong, or a damage was not caught.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.report import Kept, write
from benchmarks.tiny_configs import VOCABULARY, exportable_config, tiny_config, tiny_model
from benchmarks.tiny_files import exported, model_of, tokenizer

SECONDS, BYTES = 240, 6 << 30
"""Limits of one family's process: CPU seconds (four times as many of the clock, for busy machines), and memory."""
SAME = 1e-3
"""Difference of logits, in their standard deviations, up to which they are the same."""
LENGTHS = (((33, 61, 50), (90, 54)), ((24, 41), (9, 56)))
"""Documents of two batches of sequences: one as long as attention in blocks needs, and a shorter one."""
PROMPTS = tuple(range(5, 126, 5))
"""Lengths of the prompts after which a file is compared with its model. Rounding turns a router's choice between two experts
that are equally good after one of some thirty prompts; the mean of few would be that one."""
KL = 1e-4
"""Mean KL in nats up to which a file of type F16 is the same as its model."""
DAMAGED = (
    "llama", "gemma2", "qwen3_moe", "phi3", "gpt2", "qwen2", "gpt_oss", "deepseek_v3", "mamba2", "lfm2", "qwen3_next", "bloom",
    "gemma3", "llama4", "mixtral", "falcon",
)  # fmt: skip
"""Families whose checkpoints are damaged: plain, tied with caps, with an expert per tensor, fused, transposed, with biases,
with joined experts, with states, with convolutions, with encoders of images, and with names of their own."""


def main() -> None:
    """Run the parts, and write the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--quick", action="store_true", help="all types, but a sixth of the files and two damaged families"
    )
    parser.add_argument("--types", help="comma-separated; all by default")
    parser.add_argument("--parts", default="types,files,damaged")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--one", help="one family, in this process; prints its result")
    parser.add_argument("--work", type=Path, help="a file for finished families, so that an interrupted run goes on")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(examine(options.one)))
        return
    kept = Kept(options.work, {"transformers": transformers_version()})
    figures: dict[str, Any] = {}
    details: dict[str, Any] = {}
    if "types" in options.parts:
        figures, details["families"] = types(
            options.types.split(",") if options.types else causal_types(), options.workers, kept
        )
    if "files" in options.parts:
        wanted = options.types.split(",") if options.types else exported_families()[:: 6 if options.quick else 1]
        more, details["files"] = files(wanted, options.workers, kept)
        figures |= more
    if "damaged" in options.parts:
        more, details["damaged"] = damaged(DAMAGED[:2] if options.quick else DAMAGED, options.workers, kept)
        figures |= more
    write(figures, details, options.json)
    sys.exit(1 if failed(figures) else 0)


def failed(figures: dict[str, Any]) -> bool:
    """Whether something is not as it should be. Files above the limit of KL are figures: F16 turns routers' choices."""
    counted = sum(figures.get(name, 0) for name in ("wrong", "files_failed", "damaged_failed"))
    return bool(counted) or bool(figures.get("caught_share", 1.0) < 1)


def causal_types() -> list[str]:
    """Every ``model_type`` of transformers' causal mapping."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def transformers_version() -> str:
    """The installed transformers, whose types are examined."""
    from importlib.metadata import version

    return version("transformers")


def types(names: list[str], workers: int, kept: Kept) -> tuple[dict[str, Any], dict[str, Any]]:
    """Examine families, each in a process of its own."""
    found = in_processes(names, examine, workers, kept)
    counts = Counter(result["result"] for result in found.values())
    models = [result for result in found.values() if result.get("language_model", True)]
    refusals = [result["seconds"] for result in found.values() if result["result"] == "refused"]

    def families(*keys: str) -> int:
        """Distinct families: a vision-language model and the text model inside it are one."""
        return len({result["family"] for result in found.values() if all(result.get(key) for key in keys)})

    figures = {
        "types": len(found),
        "right": counts["right"],
        "refused": counts["refused"],
        "wrong": counts["wrong"],
        "impossible": counts["impossible"],
        "language_models": len(models),
        "right_share": round(counts["right"] / len(models), 4) if models else 0.0,
        "slowest_refusal_seconds": max(refusals, default=0.0),
        "by_rows": sum(result.get("packed") is False for result in found.values()),
        "prunable": families("prunable"),
        "gguf": families("gguf"),
        "moe_prunable": families("prunable", "moe"),
    }
    return figures, found


def exported_families() -> list[str]:
    """Every family that has a GGUF layout."""
    from stillroom.models.families.registry import families

    return sorted(name for name, family in families().items() if family.gguf is not None)


def files(names: list[str], workers: int, kept: Kept) -> tuple[dict[str, Any], dict[str, Any]]:
    """Export families to GGUF, each in a process of its own, and compare."""
    found = in_processes(names, export, workers, kept)
    means = {name: result["kl"] for name, result in found.items() if "kl" in result}
    figures = {
        "files": len(found),
        "files_compared": len(means),
        "files_failed": len(found) - len(means),
        "kl_largest_mean": largest(means.values()),
        "kl_over": sum(not mean <= KL for mean in means.values()),
        "kl_largest_mean_f32": largest(result["kl_f32"] for result in found.values() if "kl_f32" in result),
    }
    return figures, found


def largest(values: Iterable[float]) -> float:
    """The largest value; infinite where one is not finite, since NaN is larger than nothing."""
    found = list(values)
    return max(found, default=0.0) if all(map(math.isfinite, found)) else math.inf


def export(name: str) -> dict[str, Any]:
    """The files of one family: mean KL over prompts, in nats, and the largest with F16.

    llama.cpp multiplies F16 weights by inputs rounded to F16, PyTorch does not: where a router's choice is on the verge, that
    turns it. An F32 file is computed as PyTorch computes, and shows whether the layout is right.
    """
    try:
        with tempfile.TemporaryDirectory() as temporary:
            found = exported(model_of(name), Path(temporary), PROMPTS)
        with tempfile.TemporaryDirectory() as temporary:
            full = exported(model_of(name), Path(temporary), PROMPTS, "F32")
    except Exception as error:
        return {"result": "failed", "why": f"{type(error).__name__}: {_line(error)}"}
    mean, mean_full = sum(found) / len(found), sum(full) / len(full)
    result = "same" if mean <= KL else "differs"
    return {
        "result": result,
        "kl": float(f"{mean:.2g}"),
        "largest": float(f"{found[-1]:.2g}"),
        "kl_f32": float(f"{mean_full:.2g}"),
    }


def in_processes(
    names: list[str], work: Callable[[str], dict[str, Any]], workers: int, kept: Kept
) -> dict[str, dict[str, Any]]:
    """Run a function once for each name, each time in a process of its own, forked from one that has imported the libraries.

    A process that takes more than :data:`SECONDS` of CPU is ended (``impossible``); one that dies is ``wrong``. What ``kept``
    has of an earlier run is not run again.
    """
    import transformers

    import stillroom.formats.gguf_file
    import stillroom.models.load  # noqa: F401 - imported once, here

    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    transformers.logging.set_verbosity_error()
    context = multiprocessing.get_context("fork")
    running: dict[Any, tuple[str, Any, float]] = {}
    found = {name: kept.cells[key] for name in names if (key := f"{work.__name__} {name}") in kept.cells}
    waiting = [name for name in names if name not in found]

    def finished(name: str, result: dict[str, Any]) -> None:
        found[name] = result
        kept.add(f"{work.__name__} {name}", result)
        _say(name, result)

    while waiting or running:
        while waiting and len(running) < workers:
            name = waiting.pop(0)
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_report, args=(sender, work, name), daemon=True)
            process.start()
            sender.close()
            running[receiver] = (name, process, time.monotonic() + 4 * SECONDS)
        ready: list[Any] = multiprocessing.connection.wait(list(running), timeout=1)
        for pipe in ready:
            name, process, _ = running.pop(pipe)
            try:
                result = pipe.recv()
            except EOFError:
                process.join()
                slow = process.exitcode == -signal.SIGXCPU
                why = f"more than {SECONDS} CPU seconds" if slow else f"the process ended with {process.exitcode}"
                result = {"result": "impossible" if slow else "wrong", "why": why}
            process.join()
            finished(name, result)
        for receiver, (name, process, end) in list(running.items()):
            if time.monotonic() > end:
                process.kill()
                process.join()
                del running[receiver]
                finished(name, {"result": "impossible", "why": f"more than {4 * SECONDS} s", "seconds": 4 * SECONDS})
    return {name: found[name] for name in names}


def _report(sender: Any, work: Callable[[str], dict[str, Any]], name: str) -> None:
    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    try:
        result = work(name)
    except Exception as error:
        result = {"result": "wrong", "why": f"{type(error).__name__}: {_line(error)}"}
    sender.send(result)
    sender.close()


def _say(name: str, result: dict[str, Any]) -> None:
    sys.stderr.write(
        f"{name:26} {result['result']:10} {result.get('seconds', 0):7.2f} s  "
        f"{result.get('kl', '')} {result.get('why', '')}\n"
    )
    sys.stderr.flush()


def examine(name: str) -> dict[str, Any]:
    """What becomes of one family: ``result``, ``why``, ``seconds`` of opening, and what else can be done with it."""
    import torch
    import transformers
    from transformers import AutoConfig

    from stillroom.core.errors import StillroomError
    from stillroom.models.kinds import ENCODERS, REASONS, kind_of

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    maker: Any = AutoConfig
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            config = maker.for_model(name)
            said = config.to_dict() | {"model_type": name}
        except Exception:
            said = {"model_type": name}
        (folder / "config.json").write_text(json.dumps(said, default=str))
        begun = time.perf_counter()
        try:
            kind_of(folder)
        except StillroomError as error:
            seconds = time.perf_counter() - begun
            named = name in str(error)
            if type(error).__name__ == "UnsupportedModel":
                result = "refused" if named and seconds < 1 else "wrong"
                # Whether it would be a teacher if it could be opened: these count against the share.
                model = not (name in ENCODERS or name in REASONS or said.get("is_encoder_decoder"))
                return {"result": result, "why": error.what, "seconds": round(seconds, 3), "language_model": model}
        try:
            config = tiny_config(name)
            opener = opener_of(config)
            model = tiny_model(config, opener)
            model(input_ids=torch.arange(3, 43)[None], use_cache=False)
        except Exception as error:
            return {"result": "impossible", "why": f"no tiny config: {type(error).__name__}: {_line(error)}"}
        return _open(name, model, opener, folder)


def opener_of(config: Any) -> Any:
    """The class of transformers that the published files of a family are of: with its other parts, where it has such."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    larger = config.get_text_config() is not config and config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return transformers.AutoModelForImageTextToText if larger else transformers.AutoModelForCausalLM


def _open(name: str, model: Any, opener: Any, folder: Path) -> dict[str, Any]:
    """Write a model, open it as a teacher, and compare."""
    import torch

    from stillroom.core.errors import StillroomError
    from stillroom.models.forward import way_of
    from stillroom.models.load import load_teacher
    from stillroom.recipe.teacher import HuggingFaceTeacher

    model.save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text())
    if said["model_type"] != name and not said["model_type"].startswith(name):  # an alias; not the text model inside
        (folder / "config.json").write_text(json.dumps(said | {"model_type": name}))
    tokenizer().save_pretrained(folder)
    begun = time.perf_counter()
    try:
        teacher = load_teacher(HuggingFaceTeacher(name=str(folder)), "cpu", torch.float32)
    except StillroomError as error:
        seconds = time.perf_counter() - begun
        named = name in error.what or type(model).__name__ in error.what
        return {"result": "refused" if named else "wrong", "why": error.what, "seconds": round(seconds, 3)}
    seconds = round(time.perf_counter() - begun, 3)
    reference = opener.from_pretrained(folder, dtype=torch.float32).eval()
    way = way_of(teacher.model)
    worst = largest(compare(teacher.model, reference, lengths) for lengths in LENGTHS)
    return {
        "result": "right" if worst <= SAME else "wrong",
        "why": "; ".join(teacher.notes) if worst <= SAME else f"logits differ by {worst:.2g} of their spread",
        "seconds": seconds,
        "packed": way.packed,
        "error": float(f"{worst:.2g}"),
        "family": teacher.family,
        **capabilities(teacher.model, teacher.tokenizer),
    }


def compare(model: Any, reference: Any, lengths: tuple[tuple[int, ...], ...]) -> float:
    """Largest difference of logits on packed sequences from those of single documents, in standard deviations."""
    import torch

    from stillroom.models.forward import hidden_states, logits_from_hidden

    generator = torch.Generator().manual_seed(7)
    rows = [[torch.randint(3, VOCABULARY, (length,), generator=generator) for length in row] for row in lengths]
    ids = torch.stack([torch.cat(row) for row in rows])
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in lengths])
    with torch.no_grad():
        expected = torch.cat(
            [reference(input_ids=document[None], use_cache=False).logits[0].float() for row in rows for document in row]
        )
        found = logits_from_hidden(model, hidden_states(model, ids, positions)).flatten(0, 1)
    return float((found - expected).abs().max() / expected.std())


def capabilities(model: Any, words: Any) -> dict[str, Any]:
    """What else can be done with a family, found by trying: pruning, and a GGUF file."""
    from stillroom.core.errors import StillroomError
    from stillroom.formats.gguf_file import planned_bytes
    from stillroom.models.families.registry import families

    family = families().get(model.config.model_type)
    found: dict[str, Any] = {"prunable": family is not None and bool(family.cuts), "gguf": False}
    names = [name.lower() for name, _ in model.named_modules()]
    found["moe"] = any("experts" in name for name in names)
    if family is not None and family.gguf is not None:
        # Some of the tiny configs hold what llama.cpp does not have of the family, such as short windows.
        try:
            planned_bytes(exportable_config(model.config.model_type), words, "F16", name="tiny", licence=None)
            found["gguf"] = True
        except StillroomError as error:
            # The tokenizer here is not one of llama.cpp's; what is said of the family is not.
            found["gguf"] = "tokenizer" in str(error) or "pre-tokenizer" in str(error)
    return found


def damaged(names: tuple[str, ...], workers: int, kept: Kept) -> tuple[dict[str, Any], dict[str, Any]]:
    """Open checkpoints with one fault each, those of a family in a process of its own."""
    found = in_processes(list(names), damage, workers, kept)
    count = sum(result.get("damaged", 0) for result in found.values())
    missed = sum(len(result.get("missed", ())) for result in found.values())
    figures = {
        "damaged": count,
        "caught_share": (count - missed) / count if count else 0.0,
        "damaged_families": len(found),
        "damaged_failed": sum("damaged" not in result for result in found.values()),
        "slowest_catch_seconds": max(
            (result["seconds"] for result in found.values() if "damaged" in result), default=0.0
        ),
    }
    return figures, found


def damage(family: str) -> dict[str, Any]:
    """Open the checkpoints of one family with a fault each: how many there are, and what was opened or failed otherwise."""
    import torch
    import transformers

    from stillroom.core.errors import StillroomError
    from stillroom.models.load import load_teacher
    from stillroom.recipe.teacher import HuggingFaceTeacher

    transformers.logging.set_verbosity_error()
    count, slowest, missed = 0, 0.0, []
    with tempfile.TemporaryDirectory() as temporary:
        for fault, folder in damages(family, Path(temporary)):
            begun = time.perf_counter()
            try:
                load_teacher(HuggingFaceTeacher(name=str(folder)), "cpu", torch.float32)
                outcome = "opened"
            except StillroomError as error:
                outcome = "" if fault != "none" else error.what
            except Exception as error:
                outcome = f"{type(error).__name__}: {_line(error)}"
            if fault == "none":
                if outcome != "opened":
                    return {"result": "failed", "why": f"the whole checkpoint does not open: {outcome}"}
                continue
            count += 1
            slowest = max(slowest, time.perf_counter() - begun)
            if outcome:
                missed.append(f"{fault}: {outcome}")
    result = "missed" if missed else "caught"
    return {"result": result, "damaged": count, "missed": missed, "seconds": round(slowest, 2)}


def damages(family: str, root: Path) -> Iterator[tuple[str, Path]]:
    """The whole checkpoint of a family (``none``), then copies with one fault each, all in several files."""
    from safetensors.torch import load_file, save_file

    whole, copy = root / "whole", root / "copy"
    config = tiny_config(family)
    tiny_model(config, opener_of(config)).save_pretrained(whole, max_shard_size="120KB")
    tokenizer().save_pretrained(whole)
    yield "none", whole
    index = json.loads((whole / "model.safetensors.index.json").read_text())
    where: dict[str, str] = index["weight_map"]
    kinds: dict[tuple[str, str], str] = {}
    for name, file in where.items():
        kinds.setdefault((re.sub(r"\d+", "*", name), file), name)

    def fresh() -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)

    for name in kinds.values():
        for fault, change in TENSOR_FAULTS.items():
            fresh()
            path = copy / where[name]
            tensors = load_file(path)
            change(tensors, name)
            save_file(tensors, path, metadata={"format": "pt"})
            # The index agrees with the files: the fault is in the tensors alone.
            known = {key: file for key, file in where.items() if file != where[name]} | dict.fromkeys(
                tensors, where[name]
            )
            (copy / "model.safetensors.index.json").write_text(json.dumps(index | {"weight_map": known}))
            yield f"{fault} {name}", copy
    for file in sorted(set(where.values())):
        for fault, change_file in FILE_FAULTS.items():
            fresh()
            change_file(copy, file, where)
            yield f"{fault} {file}", copy
    for file in sorted(path.name for path in whole.glob("*.json")):
        for fault, change_file in JSON_FAULTS.items():
            fresh()
            change_file(copy, file, where)
            yield f"{fault} {file}", copy


def _renamed(tensors: dict[str, Any], name: str) -> None:
    tensors[name.replace(".weight", "_.weight") if ".weight" in name else f"{name}_"] = tensors.pop(name)


def _shorter(tensors: dict[str, Any], name: str) -> None:
    tensors[name] = tensors[name][:-1].clone()


def _number(value: float) -> Callable[[dict[str, Any], str], None]:
    def change(tensors: dict[str, Any], name: str) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[0] = value

    return change


def _integers(tensors: dict[str, Any], name: str) -> None:
    import torch

    tensors[name] = tensors[name].to(torch.int8)


TENSOR_FAULTS: dict[str, Callable[[dict[str, Any], str], None]] = {
    "missing": lambda tensors, name: tensors.pop(name),
    "renamed": _renamed,
    "other shape": _shorter,
    "NaN": _number(float("nan")),
    "Inf": _number(float("inf")),
    "integers": _integers,
}


def _cut(folder: Path, file: str, _where: dict[str, str]) -> None:
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: len(data) * 2 // 3])


def _gone(folder: Path, file: str, _where: dict[str, str]) -> None:
    (folder / file).unlink()


def _doubled(folder: Path, file: str, where: dict[str, str]) -> None:
    """A tensor of another file is in this one too."""
    from safetensors.torch import load_file, save_file

    other = next(name for name in sorted(where) if where[name] != file)
    tensors = load_file(folder / file)
    tensors[other] = load_file(folder / where[other])[other]
    save_file(tensors, folder / file, metadata={"format": "pt"})


def _unnamed(folder: Path, file: str, where: dict[str, str]) -> None:
    """The index forgets the file."""
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {name: held for name, held in where.items() if held != file}
    path.write_text(json.dumps(index))


def _swapped(folder: Path, file: str, where: dict[str, str]) -> None:
    """The file holds what another one holds."""
    other = next(held for held in sorted(set(where.values())) if held != file)
    shutil.copyfile(folder / other, folder / file)


def _empty(folder: Path, file: str, _where: dict[str, str]) -> None:
    (folder / file).write_bytes(b"")


FILE_FAULTS: dict[str, Callable[[Path, str, dict[str, str]], None]] = {
    "truncated": _cut,
    "gone": _gone,
    "empty": _empty,
    "a tensor twice in": _doubled,
    "not in the index:": _unnamed,
    "another file's content in": _swapped,
}
JSON_FAULTS = {"truncated": _cut, "empty": _empty}
"""Of every other file: its config, its tokenizer and its index."""


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:160] if lines else type(error).__name__


if __name__ == "__main__":
    main()
