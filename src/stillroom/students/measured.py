"""What was measured of a teacher on a sample, kept in a file for any number of students.

Legend: P evaluated positions, V ids of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from stillroom.core import files
from stillroom.models.families.family import Family
from stillroom.models.forward import way_of
from stillroom.students.importance import Sample, block_influence, judged_logprobs, leave_one_out_kl
from stillroom.students.widths import WidthImportance, measure_orders, measure_widths

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

FORMAT = "2"
"""Measured otherwise, it is measured anew: in format 1 documents of long sequences saw those before them."""


@dataclass
class Measured:
    """What was measured of a teacher, for any number of students.

    Attributes:
        influence: Block influence of each layer.
        leave_one_out: KL to the teacher without each single layer, nats per token; empty where it was not asked for.
        widths: Importance of channels, groups and hidden entries.
        reference: The teacher's log-probabilities on the evaluating part, [P, V].
        sample: The sample.
        file: Where it is kept; None keeps nothing.
        identity: What it was measured of, and on: another teacher or sample is measured anew.
    """

    influence: list[float]
    leave_one_out: list[float]
    widths: WidthImportance
    reference: torch.Tensor
    sample: Sample
    file: Path | None = None
    identity: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        teacher: CausalModel,
        family: Family,
        sample: Sample,
        *,
        leave_one_out: bool = False,
        file: Path | None = None,
        digest: str = "",
    ) -> Measured:
        """Measure a teacher in one pass each for layers, widths and the evaluating part, or read what was measured before.

        Args:
            teacher: The teacher, float32.
            family: Its family.
            sample: What to measure on.
            leave_one_out: Measure the KL without each single layer too; it takes as long as a few passes.
            file: A safetensors file to keep it in. One of another teacher, sample or format is replaced.
            digest: Digest of the teacher.
        """
        # A model that runs each document by itself is not walked layer by layer over packed ones.
        leave_one_out = leave_one_out and way_of(teacher).packed
        identity = {"format": FORMAT, "teacher": digest, "sample": files.digest_json(sample.digests)}
        found = _read(file, identity)
        reference = judged_logprobs(teacher, sample.judge)
        if found is None:
            measured = cls([], [], measure_widths(teacher, family, sample.screen), reference, sample, file, identity)
            measured.influence = block_influence(teacher, family, sample.screen)
        else:
            measured = cls(
                found["block_influence"].tolist(),
                found["leave_one_out_kl"].tolist(),
                WidthImportance(
                    found["channels"],
                    found["groups"],
                    found["hidden"],
                    found.get("channel_order"),
                    found.get("group_order"),
                    found.get("experts", torch.zeros(0, 0, dtype=torch.float64)),
                    found.get("expert_tokens", torch.zeros(0, 0, dtype=torch.float64)),
                ),
                reference,
                sample,
                file,
                identity,
            )
        if leave_one_out and not measured.leave_one_out:
            measured.leave_one_out = leave_one_out_kl(teacher, family, sample.judge)
            found = None
        if found is None:
            measured.save()
        return measured

    def order(self, teacher: CausalModel, family: Family) -> None:
        """Measure the order in which channels and groups can go, once: it takes longer than the rest."""
        if self.widths.channel_order is None:
            self.widths = measure_orders(teacher, family, self.sample.fit, self.widths)
            self.save()

    def tensors(self) -> dict[str, torch.Tensor]:
        """For a safetensors file."""
        found = {
            "block_influence": torch.tensor(self.influence, dtype=torch.float64),
            "leave_one_out_kl": torch.tensor(self.leave_one_out, dtype=torch.float64),
            "channels": self.widths.channels,
            "groups": self.widths.groups,
            "hidden": self.widths.hidden,
        }
        if self.widths.experts.numel():
            found |= {"experts": self.widths.experts, "expert_tokens": self.widths.tokens}
        if self.widths.channel_order is not None and self.widths.group_order is not None:
            found |= {"channel_order": self.widths.channel_order, "group_order": self.widths.group_order}
        return found

    def save(self) -> None:
        """Write the file, atomically, where there is to be one."""
        if self.file is None:
            return
        from safetensors.torch import save_file

        with files.replacing(self.file) as beside:
            tensors = {name: tensor.contiguous() for name, tensor in self.tensors().items()}
            # One entry only: safetensors writes several in an order that differs from time to time.
            save_file(tensors, beside, metadata={"measured": _text(self.identity)})


def _text(identity: dict[str, str]) -> str:
    return files.canonical_json(identity).decode()


def is_measured(file: Path) -> bool:
    """Whether a file is one that :meth:`Measured.save` wrote, of whatever teacher and sample."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            return set(tensors.metadata() or ()) == {"measured"}
    except (SafetensorError, OSError):
        return False


def _read(file: Path | None, identity: dict[str, str]) -> dict[str, torch.Tensor] | None:
    """The tensors of a file that was measured of the same; None where it has to be measured anew."""
    from safetensors import SafetensorError, safe_open

    if file is None or not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as tensors:
            if tensors.metadata() != {"measured": _text(identity)}:
                return None
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError):
        return None
