# mypy: ignore-errors
# ruff: noqa
"""lm-evaluation-harness: its API models score our endpoint."""

import math
import os

from checks import arguments, check, done

BASE, MODEL, KEY = arguments()
os.environ["OPENAI_API_KEY"] = KEY

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI  # noqa: E402

PAIRS = [("The capital of France is", " Paris"), ("The capital of France is", " cheese"), ("1 2 3", " 4")]


def model(**more):
    return LocalCompletionsAPI(
        base_url=f"{BASE}/v1/completions", model=MODEL, tokenizer_backend=None, tokenized_requests=False, **more
    )


@check("generate_until")
def _():
    request = Instance("generate_until", {}, ("Once upon", {"until": ["\n"], "max_gen_toks": 8}), 0)
    (text,) = model().generate_until([request])
    assert isinstance(text, str)


@check("the server's log-probabilities are log-probabilities of the prompt")
def _():
    import requests

    head = {"Authorization": f"Bearer {KEY}"}
    for context, end in PAIRS:
        body = {"model": MODEL, "prompt": context + end, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
        found = requests.post(f"{BASE}/v1/completions", json=body, headers=head, timeout=60).json()
        logprobs = found["choices"][0]["logprobs"]
        inside = [
            index for index, offset in enumerate(logprobs["text_offset"]) if len(context) <= offset < len(context + end)
        ]
        assert inside
        assert all(logprobs["token_logprobs"][index] < 0 for index in inside)
        ((score, greedy),) = LocalCompletionsAPI.parse_logprobs(found, tokens=[[0] * 99], ctxlens=[inside[0]])
        assert math.isfinite(score)
        assert isinstance(greedy, bool)


@check("chat completions")
def _():
    chat = LocalChatCompletion(base_url=f"{BASE}/v1/chat/completions", model=MODEL)
    message = '[{"role": "user", "content": "Hi"}]'
    from lm_eval.models.api_models import JsonChatStr

    request = Instance("generate_until", {}, (JsonChatStr(message), {"until": [], "max_gen_toks": 8}), 0)
    (text,) = chat.generate_until([request])
    assert isinstance(text, str)


done()
