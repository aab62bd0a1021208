"""A peer's student: SmolLM2 cut by Torch-Pruning, as its LLM example does it (group magnitude, heads and widths, no repair).

Runs in a process of its own with Torch-Pruning on its path (`peer_folder`), so that it is no dependency:

    python -m benchmarks.torch_pruning_peer TEACHER_FOLDER TARGET_FOLDER WIDTH_RATIO
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

PEER = Path(".venvs/torch-pruning")
VERSION = "1.6.1"
LONGEST = 1800.0
"""Seconds after which it is given up."""
HEAD_RATIO = 1 / 3
"""Share of heads that go: one query head of each of SmolLM2's key/value groups."""
WIDTH_RATIO = 0.22
"""Share of the hidden width and of the channels that go; with 8,384 ids the student has just under half the parameters."""


class LeftOut(Exception):
    """Torch-Pruning cannot be installed, or gives no student; and why."""


def peer_folder() -> str:
    """Where Torch-Pruning is stored, installed there if it can be.

    Raises:
        LeftOut: It cannot.
    """
    if not (PEER / f"torch_pruning-{VERSION}.dist-info").is_dir():
        shutil.rmtree(PEER, ignore_errors=True)
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(PEER),
            f"torch-pruning=={VERSION}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no reason"])[-1]
            raise LeftOut(f"Torch-Pruning cannot be installed: {why}")
    return str(PEER.absolute())


def cut(teacher: Path, target: Path, width_ratio: float = WIDTH_RATIO) -> float:
    """Prune in a process of its own; the CPU seconds that it took without loading.

    Raises:
        LeftOut: There is no student; what was written of one is removed.
    """
    path = os.pathsep.join(filter(None, [peer_folder(), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "benchmarks.torch_pruning_peer", str(teacher.absolute()), str(target.absolute())]
    shutil.rmtree(target, ignore_errors=True)
    try:
        done = subprocess.run(
            [*command, str(width_ratio)],
            env=os.environ | {"PYTHONPATH": path},
            cwd=Path(__file__).parents[1],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=LONGEST,
        )
    except subprocess.CalledProcessError as error:
        why = f"failed with exit code {error.returncode}"
    except subprocess.TimeoutExpired:
        why = f"did not end within {LONGEST:.0f} seconds"
    else:
        return float(done.stdout.split()[-1])
    shutil.rmtree(target, ignore_errors=True)
    raise LeftOut(f"Torch-Pruning {why} on this teacher")


def _cut_here(teacher: Path, target: Path, width_ratio: float) -> None:
    import torch
    import torch_pruning
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32, attn_implementation="eager").eval()
    begun = time.process_time()
    config = model.config
    # The example prunes untied layers; tied ones are tied again behind it, with the same entries gone from both.
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    heads = {}
    for layer in model.model.layers:
        heads[layer.self_attn.q_proj] = config.num_attention_heads
        heads[layer.self_attn.k_proj] = config.num_key_value_heads
        heads[layer.self_attn.v_proj] = config.num_key_value_heads
    pruner = torch_pruning.pruner.BasePruner(
        model,
        example_inputs={"input_ids": torch.arange(1, 17)[None], "use_cache": False},
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
        global_pruning=False,
        output_transform=lambda output: output.logits,
        pruning_ratio=width_ratio,
        ignored_layers=[model.lm_head],
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=HEAD_RATIO,
        # Its configuration takes widths only that are multiples of the heads that stay.
        round_to=6,
    )
    pruner.step()
    first = model.model.layers[0]
    width = config.head_dim
    config.hidden_size = model.lm_head.in_features
    config.intermediate_size = first.mlp.gate_proj.out_features
    config.num_attention_heads = first.self_attn.q_proj.out_features // width
    config.num_key_value_heads = first.self_attn.k_proj.out_features // width
    assert torch.equal(model.model.embed_tokens.weight, model.lm_head.weight)
    model.lm_head.weight = model.model.embed_tokens.weight
    spent = time.process_time() - begun
    model.save_pretrained(target)
    sys.stdout.write(f"{spent}\n")


if __name__ == "__main__":
    _cut_here(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
