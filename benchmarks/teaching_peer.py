"""The peers of `benchmarks.step`, in the Python of their own environment: TRL's GKD trainer and Liger's chunked loss.

    .venvs/trl/bin/python benchmarks/teaching_peer.py FOLDER

Reads the name of a step (`gkd`, `liger`) or `loss POSITIONS` a line, does it, and answers with one line of JSON. The folder
holds a student, a teacher of the same vocabulary and a batch. Imports nothing of Stillroom.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/, whose names are common words

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from benchmarks.budget import own_peak_bytes  # noqa: E402

FOLDER = Path(sys.argv[1])
VOCABULARY, WIDTH = 151_936, 256
DTYPE = getattr(torch, os.environ.get("STEP_DTYPE", "bfloat16"))
"""What is computed in; weights of the student are float32."""


def make_gkd() -> Callable[[], None]:
    """One step of `trl.experimental.gkd.GKDTrainer` with ``lmbda=0``, ``beta=0`` (forward KL), as its loop makes it."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    student = AutoModelForCausalLM.from_pretrained(FOLDER / "student", dtype=torch.float32)
    teacher = AutoModelForCausalLM.from_pretrained(FOLDER / "teacher", dtype=DTYPE)
    words = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    trainer = GKDTrainer(
        model=student,
        teacher_model=teacher,
        args=GKDConfig(
            output_dir=str(FOLDER / "trl"),
            lmbda=0.0,
            beta=0.0,
            temperature=1.0,
            use_cpu=True,
            bf16=torch.bfloat16 == DTYPE,
            gradient_checkpointing=False,
            report_to=[],
            per_device_train_batch_size=4,
            max_steps=1,
            learning_rate=1e-5,
        ),
        train_dataset=Dataset.from_list([{"messages": words}]),
        processing_class=AutoTokenizer.from_pretrained(FOLDER / "student"),
    )
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1  # what the loop of transformers sets
    batch = load_file(FOLDER / "batch.safetensors")

    def step() -> None:
        trainer.model.train()
        inputs = {
            "input_ids": batch["ids"],
            "attention_mask": torch.ones_like(batch["ids"]),
            "labels": batch["labels"],
            "prompts": batch["ids"][:, :1],
        }
        trainer.training_step(trainer.model, inputs)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step


def make_liger() -> Callable[[], None]:
    """A step with Liger's chunked distillation loss on the hidden states of student and teacher, beta 0."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    student = AutoModelForCausalLM.from_pretrained(FOLDER / "student", dtype=torch.float32)
    teacher = AutoModelForCausalLM.from_pretrained(FOLDER / "teacher", dtype=DTYPE)
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    batch = load_file(FOLDER / "batch.safetensors")

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=torch.bfloat16 == DTYPE):
            with torch.no_grad():
                taught = teacher.base_model(input_ids=batch["ids"]).last_hidden_state[:, :-1].flatten(0, 1)
            hidden = student.base_model(input_ids=batch["ids"]).last_hidden_state[:, :-1].flatten(0, 1)
            value = loss(
                hidden.to(DTYPE),
                student.lm_head.weight.to(DTYPE),
                taught.to(DTYPE),
                teacher.lm_head.weight,
                batch["labels"][:, 1:].flatten(),
            )
        value.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def loss_memory(positions: int) -> None:
    """Peak bytes of this process after Liger's loss on so many positions at a large vocabulary."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False)
    hidden = torch.randn(positions, WIDTH, dtype=DTYPE, requires_grad=True)
    matrix = torch.randn(VOCABULARY, WIDTH, dtype=DTYPE, requires_grad=True)
    taught = torch.randn(positions, WIDTH, dtype=DTYPE)
    targets = torch.randint(VOCABULARY, (positions,))
    loss(hidden, matrix, taught, matrix.detach(), targets).backward()


def main() -> None:
    """Answer line by line."""
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    steps: dict[str, Callable[[], None]] = {}
    answer: dict[str, float | str]
    for line in sys.stdin:
        words = line.split()
        try:
            if words[0] == "loss":
                loss_memory(int(words[1]))
                answer = {"peak_bytes": own_peak_bytes()}
            else:
                if words[0] not in steps:
                    steps[words[0]] = {"gkd": make_gkd, "liger": make_liger}[words[0]]()
                begun = time.perf_counter()
                steps[words[0]]()
                answer = {"seconds": time.perf_counter() - begun, "peak_bytes": own_peak_bytes()}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
