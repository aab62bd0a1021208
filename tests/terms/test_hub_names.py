"""Names of models on the hub, as people write them."""

from __future__ import annotations

import pytest

from stillroom.terms.hub_names import hub_name, name_in_path


@pytest.mark.parametrize(
    "text",
    [
        "meta-llama/Llama-3.1-8B",
        " meta-llama/Llama-3.1-8B/ ",
        "https://huggingface.co/meta-llama/Llama-3.1-8B/tree/main",
        "HTTPS://www.HuggingFace.co/meta-llama/Llama-3.1-8B?library=x#usage",
        "huggingface.co/meta-llama/Llama-3.1-8B/blob/main/config.json",
        "hf.co/meta-llama/Llama-3.1-8B",
        "hf.co/meta-llama/Llama-3.1-8B:Q4_K_M",
        "https://hf-mirror.com/meta-llama/Llama-3.1-8B.git",
        "https://huggingface.co/api/models/meta-llama/Llama-3.1-8B",
        "hf://meta-llama/Llama-3.1-8B@main/config.json",
        "meta-llama/Llama-3.1-8B@main",
        "meta-llama/Llama-3.1-8B@refs/pr/1",
        "meta-llama/Llama-3.1-8B/tree/main",
        "/root/.cache/huggingface/hub/models--meta-llama--Llama-3.1-8B/snapshots/0a1b",
    ],
)
def test_every_form_of_a_name_is_the_name(text: str) -> None:
    assert hub_name(text) == "meta-llama/Llama-3.1-8B"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Llama-3.1-8B",
        "our own model",
        "./out/model",
        "/data/out",
        "https://github.com/meta-llama/llama",
        "huggingface.co/datasets/a/b",
        "one/two/three",
        "meta\u2010llama/Llama",
        "http://[",
    ],
)
def test_what_is_no_name_of_the_hub(text: str) -> None:
    assert hub_name(text) is None


def test_old_names_and_paths() -> None:
    assert hub_name("gpt2") == hub_name("https://huggingface.co/gpt2") == "openai-community/gpt2"
    assert name_in_path("/data/meta-llama/Llama-3.1-8B/") == "meta-llama/Llama-3.1-8B"
    assert name_in_path("/data") is None
