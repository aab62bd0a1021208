"""Stillroom itself: no network, no pickle, no code of models, no secret in what it writes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import tiny_model

from stillroom.inspection.pickles import betrayed

SOURCES = sorted((Path(__file__).parent.parent.parent / "src" / "stillroom").rglob("*.py"))
RUNS_PROGRAMS = ("programs_child.py",)
"""The child that runs a model's answers as programs when they are scored: in a sandbox, and for that alone."""
NAMESPACE = ["unshare", "-rn"]


def can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


WHOLE = """
import os, sys
found = []
def hook(event, arguments):
    if event == "pickle.find_class":
        found.append(f"{event} {arguments}")
    if event == "socket.connect" and not isinstance(arguments[1], str):  # A path is a socket of this machine.
        found.append(f"{event} {arguments[1]}")
from stillroom.pipeline import run
import torch, transformers
sys.addaudithook(hook)
made = run(sys.argv[1], sys.argv[2], quiet=True)
print("INTERFACES", [name for _, name in __import__("socket").if_nameindex()])
print("FOUND", found)
from huggingface_hub import constants
print("TELEMETRY OFF", constants.HF_HUB_DISABLE_TELEMETRY, os.environ["DO_NOT_TRACK"], os.environ["RAY_USAGE_STATS_ENABLED"])
"""


@pytest.mark.skipif(not can_unshare(), reason="this system lets nobody make a network namespace")
def test_the_whole_path_without_a_network_and_without_pickles(small_recipe: Any, tmp_path: Path) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=3)
    settings = small_recipe(teacher, export={"gguf": ["F16"], "check_tokens": 16})
    settings["corpus"] |= {"train_tokens": 512, "heldout_tokens": 128}
    settings["corpus"]["sources"].append({"kind": "python_docs", "parts": ["topics"], "form": "chat", "limit": 20})
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HF_", "TRANSFORMERS_", "DO_NOT", "RAY_"))
    }
    environment |= {"HF_TOKEN": "hf_secretsecretsecret", "HF_HOME": str(tmp_path / "hub")}
    command = [*NAMESPACE, sys.executable, "-c", WHOLE, str(recipe), str(tmp_path / "runs")]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert shown.returncode == 0, shown.stderr
    # Not even the loopback interface is up; nothing tried to get out, and no pickle named a class.
    assert "FOUND []" in shown.stdout, shown.stdout
    assert "TELEMETRY OFF True 1 0" in shown.stdout, shown.stdout
    run = tmp_path / "runs" / "small"
    assert (run / "summary.json").is_file()
    for path in run.rglob("*"):
        if path.is_file():
            assert b"hf_secretsecretsecret" not in path.read_bytes(), path
            if path.suffix not in (".safetensors", ".gguf"):
                assert "pickle" not in str(betrayed(path)), path
    assert "hf_secretsecretsecret" not in shown.stdout + shown.stderr
    terms = json.loads((run / "terms.json").read_text())
    assert terms["decisions"][0]["decided_by"] == "Stillroom's tests"


@pytest.mark.skipif(not can_unshare(), reason="this system lets nobody make a network namespace")
def test_a_hub_that_cannot_be_reached_is_one_message_without_the_token(small_recipe: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(small_recipe("owner/model")))
    environment = os.environ | {"HF_TOKEN": "hf_secretsecretsecret", "HF_HOME": str(tmp_path / "hub")}
    command = [*NAMESPACE, sys.executable, "-m", "stillroom", "run", str(recipe), "--runs", str(tmp_path), "-q"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert shown.returncode in (2, 3), shown.stderr
    assert "owner/model" in shown.stderr
    assert "Traceback" not in shown.stderr
    assert "hf_secretsecretsecret" not in shown.stdout + shown.stderr


def test_no_source_trusts_code_or_reads_pickles() -> None:
    forbidden = re.compile(
        r"trust_remote_code\s*=\s*(?!False)\w|(^|\s)import pickle\b|from pickle\b|pickle\.loads?\(|cPickle"
        r"|import dill|import joblib|shelve|marshal\.loads?\(|torch\.load\(|torch\.save\(|allow_pickle\s*=\s*True"
        r"|weights_only\s*=\s*False|(?<!def )\beval\(|\bexec\(|yaml\.load\(|yaml\.unsafe|shell\s*=\s*True|os\.system\("
    )
    found = []
    for path in SOURCES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code = line.split("#")[0]
            if forbidden.search(code) and ".eval()" not in code and path.name not in RUNS_PROGRAMS:
                found.append(f"{path.name}:{number}: {line.strip()}")
    assert found == []


def test_loading_always_refuses_code_of_the_model() -> None:
    loaders = ("AutoModelForCausalLM.from_pretrained", "AutoTokenizer.from_pretrained")
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        for loader in loaders:
            for place in re.finditer(re.escape(loader), text):
                assert "trust_remote_code=False" in text[place.start() : place.start() + 300], path
