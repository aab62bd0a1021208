"""A teacher whose model is in memory: a Hugging Face folder or name, or a GGUF file.

Legend: N positions with a target, V ids of the teacher's vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.models.at_hand import Keep
from stillroom.models.forward import Head, hidden_states, output_head
from stillroom.models.gguf_source import gguf_path
from stillroom.models.load import LoadedTeacher, load_teacher
from stillroom.recipe.teacher import GgufTeacher, HuggingFaceTeacher
from stillroom.signals.cache.writer import CHUNK
from stillroom.signals.device_draw import positions_at_once
from stillroom.teachers.second_opinion import compare_with_runtime
from stillroom.teachers.teacher import Capability, Vocabulary

MAX_BATCH_TOKENS = {"cpu": 2048, "cuda": 65_536, "mps": 8192}
"""Tokens of a forward pass, by device, beyond which larger ones are no faster."""
HEAD_POSITIONS = 256
"""Positions that go through the output layer together."""


@dataclass(frozen=True)
class LocalTeacher:
    """A :class:`stillroom.teachers.teacher.Teacher` in this process.

    Attributes:
        loaded: The model and its tokenizer.
    """

    loaded: LoadedTeacher

    @classmethod
    def open(
        cls,
        config: HuggingFaceTeacher | GgufTeacher,
        device: torch.device | str,
        dtype: torch.dtype,
        keep: Keep = "device",
    ) -> LocalTeacher:
        """Load it; a GGUF file is compared with llama.cpp. Errors as in :func:`stillroom.models.load.load_teacher`."""
        loaded = load_teacher(config, device, dtype, keep)
        if isinstance(config, GgufTeacher):
            notes = compare_with_runtime(loaded, gguf_path(config.path))
            loaded = replace(loaded, notes=loaded.notes + notes)
        return cls(loaded)

    @property
    def name(self) -> str:
        """How people call it."""
        return self.loaded.name

    @property
    def vocabulary(self) -> Vocabulary:
        """Its token ids; the size counts the rows of the output layer."""
        return Vocabulary(self.loaded.model.get_output_embeddings().weight.shape[0], self.loaded.tokenizer)

    @property
    def identity(self) -> Mapping[str, str]:
        """Digests of the stored weights, of the config, and of the tokenizer with its chat template; and how weights are
        quantized.
        """
        found = {"teacher": self.loaded.digest, "tokenizer": self.loaded.tokenizer_digest}
        if self.loaded.quantization is not None:
            found["quantization"] = self.loaded.quantization
        return found if self.loaded.config_digest is None else found | {"config": self.loaded.config_digest}

    @property
    def licence(self) -> str | None:
        """Its licence as the recipe states it, or else its own metadata."""
        return self.loaded.licence

    @property
    def dtype(self) -> str:
        """The dtype of its weights."""
        return str(self.loaded.model.dtype).removeprefix("torch.")

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Weights and whole distributions."""
        return frozenset(("weights", "dense"))

    def record(self) -> dict[str, Any]:
        """What a run keeps of it."""
        quantization = self.loaded.quantization
        return ({} if quantization is None else {"quantization": quantization}) | {
            "name": self.name,
            "family": self.loaded.family,
            "digest": self.loaded.digest,
            "tokenizer_digest": self.loaded.tokenizer_digest,
            "licence": self.licence,
            "parameters": self.loaded.parameters,
            "bytes": self.loaded.stored_bytes,
            "dtype": self.dtype,
        }

    @property
    def output_layer(self) -> Head:
        """Its output layer, on the CPU: what its hidden states go through."""
        head = output_head(self.loaded.model)
        bias = None if head.bias is None else head.bias.detach().cpu()
        return replace(head, matrix=head.matrix.detach().cpu(), bias=bias)

    def batch_tokens(self, length: int) -> int:
        """Tokens of a forward pass that fit into half of the free memory, at least one sequence.

        A token in flight takes, without gradients, a few hidden states, the two halves of a feed-forward layer, and a row
        of the attention mask and scores.
        """
        model = self.loaded.model
        config = model.config
        width = config.hidden_size
        inner = getattr(config, "intermediate_size", 4 * width)
        parameter = next(model.parameters())
        per_token = parameter.element_size() * (6 * width + 3 * inner) + 4 * length * (config.num_attention_heads + 1)
        if parameter.device.type == "cuda":
            free = torch.cuda.mem_get_info()[0]
        else:
            free = psutil.virtual_memory().available
        fitting = int(free / 2 / per_token)
        return max(length, min(MAX_BATCH_TOKENS.get(parameter.device.type, 2048), fitting) // length * length)

    @property
    def device(self) -> torch.device:
        """Where its model is."""
        device: torch.device = next(self.loaded.model.parameters()).device
        return device

    def score(
        self, sequences: Sequences, indices: Sequence[int], temperature: float = 1.0
    ) -> Iterator[tuple[int, Iterator[torch.Tensor]]]:
        """Logits divided by the temperature, sequence by sequence: :meth:`stillroom.teachers.teacher.Teacher.score`."""
        head = output_head(self.loaded.model)
        for index, hidden in self.hidden(sequences, indices):
            yield index, _logits(head, hidden, temperature)

    def score_there(
        self, sequences: Sequences, indices: Sequence[int], counts: Sequence[Sequence[int]], temperature: float = 1.0
    ) -> Iterator[tuple[int, list[Iterator[torch.Tensor]]]]:
        """As :meth:`score`, on the model's device, and apart for each piece of a sequence.

        Args:
            sequences: A split.
            indices: Those of its sequences to score.
            counts: Positions with a target of each piece, of every sequence of the split.
            temperature: Divides the logits.
        """
        head = output_head(self.loaded.model)
        for index, hidden in self.hidden(sequences, indices):
            pieces = torch.split(hidden, list(counts[index]))
            yield index, [_logits_there(head, piece, temperature) for piece in pieces]

    @torch.inference_mode()
    def hidden(self, sequences: Sequences, indices: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """The last hidden states [N, H] of the positions with a target, sequence by sequence, in one forward pass."""
        model = self.loaded.model
        device = next(model.parameters()).device
        chosen = list(indices)
        # Padding behind the longest of them need not be seen.
        width = sequences.part(chosen).width
        hidden = hidden_states(model, sequences.ids[chosen, :width], sequences.positions[chosen, :width])
        for row, index in enumerate(chosen):
            learned = (sequences.targets[index] != IGNORED).nonzero().squeeze(1).to(device)
            yield index, hidden[row, learned]


@torch.inference_mode()
def _logits_there(head: Head, hidden: torch.Tensor, temperature: float) -> Iterator[torch.Tensor]:
    """As :func:`_logits`, left on the device, as many at a time as the draw there takes."""
    for part in torch.split(hidden, positions_at_once(head.matrix.shape[0])):
        logits = head.finish(torch.nn.functional.linear(part, head.matrix, head.bias).float())
        yield logits if temperature == 1.0 else logits / temperature


@torch.inference_mode()
def _logits(head: Head, hidden: torch.Tensor, temperature: float) -> Iterator[torch.Tensor]:
    """Logits [N, V] of hidden states, some positions at a time."""
    for part in torch.split(hidden, HEAD_POSITIONS):
        for products in torch.split(torch.nn.functional.linear(part, head.matrix, head.bias), CHUNK):
            logits = head.finish(products.float())
            yield (logits if temperature == 1.0 else logits / temperature).cpu()
