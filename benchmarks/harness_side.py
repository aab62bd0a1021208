"""The other side of a comparison: lm-evaluation-harness's own model class on the same model and items.

Run by :mod:`benchmarks.evaluation` and :mod:`benchmarks.peers` with the Python of an environment that has ``lm_eval``; imports
nothing of Stillroom.

    PYTHON benchmarks/harness_side.py MODEL_FOLDER REQUESTS.json ANSWERS.json
    PYTHON benchmarks/harness_side.py --tasks MODEL_FOLDER TASK_FOLDER ANSWERS.json
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/, whose names are common words
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


def tasks(folder: str, include: str, answers: str) -> None:
    """Score a model on every task of a folder; writes for each task whether each of its items was right, in order."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    names = [f"peers_{path.stem}" for path in sorted(Path(include).glob("*.yaml"))]
    output = lm_eval.simple_evaluate(
        model=HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=8, add_bos_token=False),
        tasks=names,
        log_samples=True,
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=include, include_defaults=False),
    )
    found = {}
    for name in names:
        samples = sorted(output["samples"][name], key=lambda sample: int(sample["doc_id"]))
        found[name.removeprefix("peers_")] = [bool(sample["acc"]) for sample in samples]
    Path(answers).write_text(json.dumps(found), encoding="utf-8")


def main() -> None:
    """Answer every request."""
    if sys.argv[1] == "--tasks":
        tasks(*sys.argv[2:5])
        return
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    folder, requests, answers = sys.argv[1:4]
    asked = json.loads(Path(requests).read_text(encoding="utf-8"))
    model = HFLM(
        pretrained=folder, dtype="float32", device="cpu", batch_size=8, max_length=asked["window"], add_bos_token=False
    )

    def instances(kind: str, arguments: Sequence[tuple[str, ...]]) -> list[Instance]:
        return [
            Instance(request_type=kind, doc={}, arguments=tuple(one), idx=index) for index, one in enumerate(arguments)
        ]

    pairs = model.loglikelihood(instances("loglikelihood", asked["pairs"]), disable_tqdm=True)
    texts = [(text,) for text in asked["texts"]]
    rolling = model.loglikelihood_rolling(instances("loglikelihood_rolling", texts), disable_tqdm=True)
    found = {"pairs": [[float(value), bool(greedy)] for value, greedy in pairs], "rolling": [float(v) for v in rolling]}
    Path(answers).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
