"""Whether ONNX Runtime says with an exported graph what PyTorch says with the student.

Legend: L new tokens, P past tokens, V ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stillroom.core import files
from stillroom.core.errors import ExportMismatch
from stillroom.core.progress import Progress
from stillroom.formats.check import Passage, student_says
from stillroom.formats.onnx_file import MODEL, empty_cache, require_onnx, write_onnx
from stillroom.models.load import load_student

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

MAX_KL = 1e-4
"""Largest mean KL(PyTorch ‖ ONNX Runtime), nats per token: both compute in float32."""
GENERATED = 32
"""Tokens of the greedy continuation that has to be the same."""
NEAR_TIE = 1e-3
"""Logits that are closer than this may change places between two ways of adding in float32."""


class OnnxModel:
    """An exported graph in ONNX Runtime, on the CPU.

    Args:
        folder: What :func:`~stillroom.formats.onnx_file.write_onnx` wrote.
        threads: Threads; None leaves the choice to the runtime.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        require_onnx()
        import onnxruntime
        from transformers import AutoConfig

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(folder / MODEL), sess_options=options, providers=["CPUExecutionProvider"]
        )
        self._config = AutoConfig.from_pretrained(folder, local_files_only=True)
        self._inputs = [entry.name for entry in self._session.get_inputs()]

    def start(self) -> list[np.ndarray]:
        """An empty cache."""
        return [tensor.numpy() for tensor in empty_cache(self._config)]

    def step(self, ids: list[int], cache: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Logits [L, V] of new tokens, and the grown cache."""
        values = [np.asarray([ids], dtype=np.int64), *cache]
        logits, *grown = self._session.run(None, dict(zip(self._inputs, values, strict=True)))
        return logits[0], grown

    def generate(self, ids: list[int], count: int) -> list[int]:
        """The greedy continuation, token by token on the cache."""
        logits, cache = self.step(ids, self.start())
        said: list[int] = []
        while len(said) < count:
            said.append(int(logits[-1].argmax()))
            logits, cache = self.step(said[-1:], cache)
        return said


def export_onnx(source: Path, target: Path, texts: list[Passage], used: int, progress: Progress) -> dict[str, Any]:
    """Write a graph and check it; nothing is left of one that is refused.

    Args:
        source: The student's Hugging Face folder.
        target: The folder to make.
        texts: Held-out passages.
        used: Rows of the output that are real ids.
        progress: Draws what takes time.

    Returns:
        ``bytes``, ``files`` (SHA-256 of each by name), and what the check measured.

    Raises:
        ExportMismatch: It says something else than its student.
    """
    progress.say("  writing ONNX")
    with files.replacing(target) as beside:
        write_onnx(source, beside)
        found = check_onnx(source, beside, texts, used)
    size = files.folder_bytes(target)
    progress.say(f"  {target.name}: {size / 1e6:.1f} MB, KL to PyTorch {found['kl_to_pytorch']:.1e}")
    digests = {file.name: files.digest_file(file) for file in sorted(target.iterdir())}
    return {"bytes": size, "files": digests, **found}


@torch.inference_mode()
def check_onnx(source: Path, folder: Path, texts: list[Passage], used: int) -> dict[str, Any]:
    """Compare distributions on passages, and a greedy continuation token by token.

    Raises:
        ExportMismatch: They differ.
    """
    model, _ = load_student(source, torch.float32)
    model.eval()
    graph = OnnxModel(folder, torch.get_num_threads())
    divergences: list[float] = []
    for text, expected in zip(texts, student_says(model, texts, used), strict=True):
        # In two calls, so that the cache is part of what is checked.
        middle, cache, outputs = len(text.ids) // 2, graph.start(), []
        # Of a passage of one token the first half is empty, which a graph is not made for.
        for part in filter(len, (text.ids[:middle], text.ids[middle:])):
            output, cache = graph.step(part, cache)
            outputs.append(output)
        said = torch.log_softmax(torch.from_numpy(np.concatenate(outputs))[:, :used], dim=1)
        divergences += (expected.exp() * (expected - said)).sum(1).tolist()
    kl = max(0.0, sum(divergences) / len(divergences))
    if not kl <= MAX_KL:
        raise ExportMismatch(
            f"{folder.name}: the mean KL of ONNX Runtime to the PyTorch student is {kl:.2e} nats per token, and "
            f"{MAX_KL:.0e} is allowed.",
            "Leave ONNX out (`export: {onnx: false}`), and report this model.",
        )
    prompt = texts[0].ids[:16]
    said_ids = graph.generate(prompt, GENERATED)
    _require_greedy(model, prompt, said_ids, folder)
    return {"kl_to_pytorch": kl, "positions": len(divergences), "greedy_tokens": len(said_ids)}


def _require_greedy(model: CausalModel, prompt: list[int], said: list[int], folder: Path) -> None:
    """Every token is PyTorch's most probable one after the same tokens, or ties with it."""
    logits = model(input_ids=torch.tensor([prompt + said]), use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    behind = logits.max(dim=1).values - logits.gather(1, torch.tensor(said)[:, None])[:, 0]
    if float(behind.max()) > NEAR_TIE:
        place = int((behind > NEAR_TIE).nonzero()[0])
        raise ExportMismatch(
            f"{folder.name}: ONNX Runtime's greedy continuation leaves PyTorch's at token {place + 1}.",
            "Leave ONNX out (`export: {onnx: false}`), and report this model.",
        )
