"""The other side of a comparison: lm-evaluation-harness's own model class on the same model and items.

Run by :mod:`benchmarks.evaluation` with the Python of an environment that has ``lm_eval``; imports nothing of Stillroom.

    PYTHON benchmarks/harness_side.py MODEL_FOLDER REQUESTS.json ANSWERS.json
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


def main() -> None:
    """Answer every request."""
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
