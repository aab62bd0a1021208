"""Trains a peer's student until its CPU seconds are spent, in the Python of an environment of its own.

    .venvs/peers-trl/bin/python benchmarks/peer_training.py SPEC.json

Methods: ``gkd`` is TRL's `trl.experimental.gkd.GKDTrainer` with ``lmbda=0`` and ``beta=0`` (forward KL on the given text, a
live teacher); ``cross_entropy`` is transformers' own Trainer; ``top_k`` is the same Trainer with DistillKit's offline loss by
its definition: Σ p (log p − log q) over the teacher's 128 likeliest tokens, what is missing counted as zero; each chat's
targets are made once, when it first comes up, so that nothing is captured that is never used. Set-up (imports, loading of
models, the choice between float32 and bfloat16) is not counted; tokenization is. Imports nothing of Stillroom.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/, whose names are common words

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments  # noqa: E402

from benchmarks.budget import THREADS, Budget, rate_factor, tree_seconds  # noqa: E402

BATCH = 4
"""Chats of a step: about as many tokens as a step of Stillroom's has."""
TOP_K = 128
LONGEST = 1024
MANY = 1_000_000
"""More steps than any budget has; the budget ends the training."""


def faster_precision(student: Any, teacher: Any) -> str:
    """The dtype in which a step of this student takes fewer CPU seconds on this machine."""
    ids = torch.randint(0, student.config.vocab_size, (2, 192))
    spent = {}
    for name in ("float32", "bfloat16"):
        for _ in range(2):  # the first one warms up
            begun = tree_seconds()
            with torch.autocast("cpu", torch.bfloat16, enabled=name == "bfloat16"):
                with torch.no_grad():
                    teacher(input_ids=ids)
                student(input_ids=ids, labels=ids).loss.backward()
            spent[name] = tree_seconds() - begun
        student.zero_grad()
    return min(spent, key=spent.__getitem__)


class Stop(TrainerCallback):
    """Ends the training when no further step fits the budget."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:  # noqa: ARG002
        """After each step."""
        control.should_training_stop = not self.budget.another()
        return control


def budgeted(kind: Any, budget: Budget) -> Any:
    """A trainer whose learning rate follows what is spent of the budget, and that counts the tokens that it sees."""

    class Budgeted(kind):  # type: ignore[misc]
        seen = 0

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:  # noqa: ARG002
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda _: rate_factor(budget.share)
            )
            return self.lr_scheduler

        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            self.seen += int(inputs["attention_mask"].sum())
            return super().training_step(model, inputs, *rest, **named)

    return Budgeted


def arguments(kind: type[TrainingArguments], spec: dict[str, Any], precision: str, **more: Any) -> Any:
    """What all trainers are told."""
    return kind(
        output_dir=str(Path(spec["target"]).parent / "trainer"),
        per_device_train_batch_size=BATCH,
        max_steps=MANY,
        learning_rate=spec["rate"],
        weight_decay=0.01,
        max_grad_norm=1.0,
        seed=spec["seed"],
        data_seed=spec["seed"],
        use_cpu=True,
        bf16=precision == "bfloat16",
        gradient_checkpointing=False,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        report_to=[],
        remove_unused_columns=False,
        **more,
    )


def gkd(spec: dict[str, Any], student: Any, teacher: Any, tokenizer: Any, precision: str, budget: Budget) -> Any:
    """TRL's trainer on the chats as they are."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    return budgeted(GKDTrainer, budget)(
        model=student,
        teacher_model=teacher,
        args=arguments(GKDConfig, spec, precision, lmbda=0.0, beta=0.0, temperature=1.0, max_length=LONGEST),
        train_dataset=Dataset.from_list([{"messages": chat} for chat in chats(spec)]),
        processing_class=tokenizer,
        callbacks=[Stop(budget)],
    )


def cross_entropy(
    spec: dict[str, Any],
    student: Any,
    teacher: Any,  # noqa: ARG001
    tokenizer: Any,
    precision: str,
    budget: Budget,
) -> Any:
    """Trains with transformers' own Trainer on the assistant's tokens."""
    return budgeted(Trainer, budget)(
        model=student,
        args=arguments(TrainingArguments, spec, precision),
        train_dataset=encoded(spec, tokenizer),
        data_collator=Padded(tokenizer.pad_token_id, keep_index=False),
        callbacks=[Stop(budget)],
    )


def top_k(spec: dict[str, Any], student: Any, teacher: Any, tokenizer: Any, precision: str, budget: Budget) -> Any:
    """The same Trainer on the teacher's likeliest tokens, each chat's made once."""
    stored: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def capture(rows: list[int], inputs: dict[str, torch.Tensor], chosen: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = teacher(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        for place, row in enumerate(rows):
            logprobs = torch.log_softmax(logits[place, :-1][chosen[place]].float(), dim=1)
            found = logprobs.topk(min(TOP_K, logprobs.shape[1]), dim=1)
            stored[row] = found.indices, found.values

    class OfflineTopK(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *_: Any, **__: Any) -> Any:
            rows = inputs.pop("index").tolist()
            chosen = inputs["labels"][:, 1:] != -100
            if any(row not in stored for row in rows):
                capture(rows, inputs, chosen)
            outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            ids, logprobs = (torch.cat([stored[row][part] for row in rows]) for part in (0, 1))
            loss = sparse_kl(outputs.logits[:, :-1][chosen], ids, logprobs)
            return (loss, outputs) if return_outputs else loss

    return budgeted(OfflineTopK, budget)(
        model=student,
        args=arguments(TrainingArguments, spec, precision),
        train_dataset=encoded(spec, tokenizer),
        data_collator=Padded(tokenizer.pad_token_id, keep_index=True),
        callbacks=[Stop(budget)],
    )


def sparse_kl(logits: torch.Tensor, ids: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
    """Σ p (log p − log q) over stored tokens, mean over positions.

    Args:
        logits: The student's, [P, V].
        ids: Stored tokens, [P, K].
        logprobs: The teacher's log-probabilities of them, [P, K].
    """
    said = torch.log_softmax(logits.float(), dim=1).gather(1, ids)
    return (logprobs.exp() * (logprobs - said)).sum(1).mean()


def chats(spec: dict[str, Any]) -> list[list[dict[str, str]]]:
    """The training text."""
    with open(spec["text"], encoding="utf-8") as stream:
        return [json.loads(line)["messages"] for line in stream if line.strip()]


def encoded(spec: dict[str, Any], tokenizer: Any) -> list[dict[str, Any]]:
    """Every chat's ids and labels; labels are the assistant's tokens, as TRL's collator has them."""
    found = []
    for index, chat in enumerate(chats(spec)):
        prompt = tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, tokenize=False)
        whole = tokenizer.apply_chat_template(chat, tokenize=False)
        ids = tokenizer(whole, add_special_tokens=False).input_ids[:LONGEST]
        asked = len(tokenizer(prompt, add_special_tokens=False).input_ids)
        found.append({"index": index, "input_ids": ids, "labels": [-100] * asked + ids[asked:]})
    return found


class Padded:
    """Chats to one batch, padded on the right."""

    def __init__(self, pad: int, keep_index: bool) -> None:
        self.pad, self.keep_index = pad, keep_index

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Tensors [B, L]."""
        length = max(len(row["input_ids"]) for row in rows)

        def padded(values: Callable[[dict[str, Any]], list[int]], fill: int) -> torch.Tensor:
            return torch.tensor([values(row) + [fill] * (length - len(row["input_ids"])) for row in rows])

        batch = {
            "input_ids": padded(lambda row: row["input_ids"], self.pad),
            "attention_mask": padded(lambda row: [1] * len(row["input_ids"]), 0),
            "labels": padded(lambda row: row["labels"], -100),
        }
        if self.keep_index:
            batch["index"] = torch.tensor([row["index"] for row in rows])
        return batch


METHODS = {"gkd": gkd, "cross_entropy": cross_entropy, "top_k": top_k}


def main() -> None:
    """Train, save, and write what it took."""
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(THREADS)
    torch.manual_seed(spec["seed"])
    tokenizer = AutoTokenizer.from_pretrained(spec["student"])
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    student = AutoModelForCausalLM.from_pretrained(spec["student"], dtype=torch.float32)
    teacher = AutoModelForCausalLM.from_pretrained(spec["teacher"], dtype=torch.float32).eval()
    precision = faster_precision(student, teacher)
    if precision == "bfloat16":
        teacher = teacher.to(torch.bfloat16)
    setup, begun = tree_seconds(), time.monotonic()
    budget = Budget(spec["cpu_seconds"], spec["spent_before"])
    trainer = METHODS[spec["method"]](spec, student, teacher, tokenizer, precision, budget)
    trainer.train()
    spent = budget.spent
    trainer.model.save_pretrained(spec["target"])
    tokenizer.save_pretrained(spec["target"])
    result = {
        "cpu_seconds": spent,
        "preparation_cpu_seconds": spec["spent_before"],
        "setup_cpu_seconds": setup,
        "wall_seconds": time.monotonic() - begun,
        "steps": trainer.state.global_step,
        "tokens": trainer.seen,
        "precision": precision,
        "versions": {
            name: sys.modules[name].__version__ for name in ("torch", "transformers", "trl") if name in sys.modules
        },
    }
    Path(spec["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
