"""The stage `corpus`: its folder and record, from a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from tiny_models import make_tokenizer, tiny_model

from stillroom.core import files
from stillroom.core.errors import CorpusError
from stillroom.core.progress import Progress
from stillroom.corpus.pieces import PieceFile, Pieces
from stillroom.corpus.sequences import Sequences
from stillroom.corpus.stage import run_stage
from stillroom.models.tokenizer import open_tokenizer, tokenizer_digest
from stillroom.recipe.reading import parse_recipe
from stillroom.runs.run import Run

RECIPE = """
name: small
teacher: {{kind: huggingface, name: {folder}}}
corpus:
  sources: [{{kind: python_docs, parts: [topics], limit: 30}}]
  sequence_length: 64
  train_tokens: 4096
  heldout_tokens: 512
"""


def make_run(folder: Path, family: str = "llama") -> Run:
    model = tiny_model(family, folder / "model")
    return Run.create(parse_recipe(RECIPE.format(folder=model), "recipe.yaml", folder), folder / "runs")


def work(run: Run) -> dict[str, str]:
    stage = run.stage("corpus")
    with stage.working({"recipe": run.recipe_digest}, seed=0):
        run_stage(run, stage, Progress(quiet=True))
    assert stage.record is not None
    return {name: entry["sha256"] for name, entry in stage.record["outputs"].items()}


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_the_stage(family: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, family)
    outputs = work(run)
    folder = run.stage("corpus").path
    record = run.stage("corpus").record
    assert record is not None
    counts = {}
    for name in ("train", "validation", "heldout"):
        sequences = Sequences.load(folder / f"{name}.safetensors")
        assert sequences.length == 64
        counts[name] = sequences.tokens
    assert 4096 <= counts["train"] < 4096 + 64
    assert record["notes"]["tokens"] == counts
    ledger = files.read_json(folder / "ledger.json")
    assert ledger["sources"][0]["kind"] == "python_docs"
    assert ledger["sources"][0]["licence"] == "PSF-2.0"
    teachers = open_tokenizer(tmp_path / "model")
    assert tokenizer_digest(open_tokenizer(folder / "tokenizer")) == tokenizer_digest(teachers)
    assert not list(folder.rglob("*.partial"))
    # Once more, over what is there: the same to the byte.
    assert work(run) == outputs


def test_what_is_saved_is_what_was_built(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    work(run)
    path = run.stage("corpus").path / "heldout.safetensors"
    held = Sequences.load(path)
    held.save(tmp_path / "again.safetensors")
    again = Sequences.load(tmp_path / "again.safetensors")
    for name in ("ids", "segments", "loss_mask", "documents", "token_bytes", "document_sources"):
        assert torch.equal(getattr(held, name), getattr(again, name))
    # Rows that are saved as they are have one address each.
    assert [len(row) for row in again.addresses] == [1] * len(held)
    pieces = Pieces.load(path)
    assert sorted(pieces.addresses) == sorted(held.digests)
    assert Sequences.pack(pieces).digests == held.digests
    pieces.save(tmp_path / "pieces.safetensors")
    assert (tmp_path / "pieces.safetensors").read_bytes() == path.read_bytes()
    text = make_tokenizer("bpe").decode(held.ids[held.own], skip_special_tokens=True)
    assert held.token_bytes.sum() == len(text.encode())


def test_some_pieces_of_a_file(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    work(run)
    file = PieceFile(run.stage("corpus").path / "train.safetensors")
    whole, some = file.read(), file.read([5, 0, 3])
    assert some.addresses == [whole.addresses[index] for index in (5, 0, 3)]
    assert some.sizes == [whole.sizes[index] for index in (5, 0, 3)]
    assert len(file.read([])) == 0


def test_pieces_of_a_later_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.safetensors"
    save_file({"ids": np.zeros(1, np.uint32)}, path, metadata={"stillroom-pieces": '{"version": 9}'})
    with pytest.raises(CorpusError, match="no file of pieces of version 1"):
        Sequences.load(path)
    save_file({"ids": np.zeros(1, np.uint32)}, path, metadata={"stillroom-pieces": '{"version": 1}'})
    with pytest.raises(CorpusError, match="cannot be read"):
        Sequences.load(path)


def test_a_damaged_split_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    work(run)
    path = run.stage("corpus").path / "train.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorpusError) as caught:
        Sequences.load(path)
    assert str(caught.value).startswith(f"{path}: cannot be read: ")
    assert str(caught.value).endswith("\nRemove its folder and run again.")


def test_a_stage_that_fails_leaves_no_record(tmp_path: Path) -> None:
    model = tiny_model("llama", tmp_path / "model")
    (tmp_path / "chats.jsonl").write_text(json.dumps({"text": "one"}) + "\n")
    text = RECIPE.format(folder=model).replace(
        "{kind: python_docs, parts: [topics], limit: 30}", "{kind: jsonl, path: chats.jsonl}"
    )
    run = Run.create(parse_recipe(text, "recipe.yaml", tmp_path), tmp_path / "runs")
    with pytest.raises(CorpusError, match=r"asks for 4,096 train tokens, and the corpus \(1 document\) has 3 for it\."):
        work(run)
    assert run.stage("corpus").record is None
    assert not list(run.stage("corpus").path.glob("*.safetensors"))
