# mypy: ignore-errors
# ruff: noqa
"""lm-evaluation-harness: log-likelihoods over our endpoint against those of the same model in a process.

Arguments after those of every client: the folder with the model's tokenizer, and a file of pairs and their log-likelihoods.
"""

import json
import os
import sys
from pathlib import Path

from checks import arguments, check, done

BASE, MODEL, KEY = arguments()
FOLDER, FILE = sys.argv[4:6]
os.environ["OPENAI_API_KEY"] = KEY
os.environ["HF_HUB_OFFLINE"] = "1"

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.openai_completions import LocalCompletionsAPI  # noqa: E402

EXPECTED = json.loads(Path(FILE).read_text(encoding="utf-8"))


def scores(**more):
    model = LocalCompletionsAPI(
        base_url=f"{BASE}/v1/completions",
        model=MODEL,
        tokenizer_backend="huggingface",
        tokenizer=FOLDER,
        max_length=512,
        **more,
    )
    requests = [Instance("loglikelihood", {}, (each["context"], each["end"]), at) for at, each in enumerate(EXPECTED)]
    return model.loglikelihood(requests)


def agree(found):
    for each, (score, greedy) in zip(EXPECTED, found, strict=True):
        assert abs(score - each["score"]) <= 1e-2, (each, score)
        assert greedy == each["greedy"], (each, greedy)


@check("loglikelihood of ids within 1e-2 of in-process")
def _():
    agree(scores(tokenized_requests=True))


@check("loglikelihood of ids, four at a time")
def _():
    agree(scores(tokenized_requests=True, batch_size=4))


@check("loglikelihood of texts within 1e-2 of in-process")
def _():
    agree(scores(tokenized_requests=False))


@check("loglikelihood_rolling")
def _():
    model = LocalCompletionsAPI(
        base_url=f"{BASE}/v1/completions", model=MODEL, tokenizer_backend="huggingface", tokenizer=FOLDER, max_length=64
    )
    (score,) = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (EXPECTED[0]["context"],), 0)])
    assert score < 0


done()
