"""A run's own secret: two default runs are independent, one is repeated to the bit with its file, no package takes it."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, make_model, tiny_model
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.core import files
from stillroom.core.errors import RunError, UsageError
from stillroom.core.secret import Secret, read_secret, write_secret
from stillroom.corpus.sequences import Sequences
from stillroom.guard.lineage import unit_order
from stillroom.guard.lineage_examine import examine, open_owner
from stillroom.guard.lineage_order import examine_order
from stillroom.models.families.registry import family_of
from stillroom.pipeline import run
from stillroom.recipe.reading import parse_recipe
from stillroom.runs.run import SECRET, Run
from stillroom.students.order import order_channels
from stillroom.training.schedule import batch_order

ONE, OTHER = Secret(bytes(32)), Secret(bytes(31) + b"\1")


def test_a_secret_is_private_and_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    secret = Secret.draw()
    write_secret(path, secret)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_secret(path) == secret
    assert secret.key.hex() not in repr(secret)
    with pytest.raises(UsageError, match="never overwritten"):
        write_secret(path, ONE)
    path.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        read_secret(path)
    path.chmod(0o600)
    path.write_text("00ff\n")
    with pytest.raises(UsageError, match="2 bytes"):
        read_secret(path)
    path.write_text("no digits")
    with pytest.raises(UsageError, match="64 hex digits"):
        read_secret(path)


def test_an_order_is_a_permutation_that_the_whole_secret_decides() -> None:
    first = ONE.permutation("order", 1000)
    assert sorted(first.tolist()) == list(range(1000))
    assert np.array_equal(first, ONE.permutation("order", 1000))
    assert not np.array_equal(first, OTHER.permutation("order", 1000))
    assert not np.array_equal(first, ONE.permutation("other", 1000))
    # Kept runs depend on it: it never changes.
    assert ONE.permutation("order of pass 0", 8).tolist() == [4, 0, 2, 5, 1, 7, 6, 3]


def test_the_order_of_an_explicit_seed_is_what_it_was() -> None:
    """As 0.1.0 ordered: torch's generator, seeded with seed and pass."""
    expected = torch.randperm(10, generator=torch.Generator().manual_seed(3 * 1_000_003 + 1)).tolist()
    order = batch_order(10, 4, 2, 3)
    assert [index for batch in order[3:] for index in batch] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_reordering_channels_changes_no_output(family: str) -> None:
    model = make_model(family, rows=64, layers=2)
    ids = torch.arange(24)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        weights = [parameter.clone() for parameter in model.parameters()]
        order_channels(model, family_of(model), ONE)
        after = model(input_ids=ids).logits
    assert torch.allclose(before, after, atol=1e-4)
    assert any(not torch.equal(one, other) for one, other in zip(weights, model.parameters(), strict=True))


def fresh(small_recipe: Any, teacher: Path, **more: Any) -> dict[str, Any]:
    recipe: dict[str, Any] = small_recipe(
        teacher, student={"kind": "fresh", "config": {"num_hidden_layers": 2}}, baseline=False
    )
    del recipe["seed"]
    recipe["corpus"] = recipe["corpus"] | {"train_tokens": 3200}
    return recipe | more


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("teacher"), layers=2)


def weights(made: Run, stage: str = "distill") -> str:
    return files.digest_file(made.path / stage / "model" / "model.safetensors")


def test_default_runs_are_independent_and_repeat_with_their_secret(
    small_recipe: Any, teacher: Path, tmp_path: Path
) -> None:
    recipe = fresh(small_recipe, teacher)
    one = run(recipe, tmp_path / "one", until="distill", quiet=True)
    two = run(recipe, tmp_path / "two", until="distill", quiet=True)
    again = run(recipe, tmp_path / "again", until="distill", quiet=True, secret=one.path / SECRET)
    # The corpus and the cache are no secret.
    assert one.stage("corpus").output_digest == two.stage("corpus").output_digest
    assert one.stage("capture").output_digest == two.stage("capture").output_digest
    assert weights(one) == weights(again)
    assert weights(one, "shrink") == weights(again, "shrink")
    assert weights(one) != weights(two)
    assert one.commitment != two.commitment
    assert one.commitment == read_secret(one.path / SECRET).commitment
    assert stat.S_IMODE((one.path / SECRET).stat().st_mode) == 0o600
    # Independent by the exact test, which finds the repeated one.
    against = unit_order(two.path / "distill" / "model", one.path / "distill" / "model").log10_p
    assert against is not None
    assert against > -1.4
    (finding,) = examine(again.path / "distill" / "model", open_owner(one.path), match=False).findings
    assert (finding.grade, finding.verdict) == ("A", "derived")
    assert finding.commitment == one.commitment
    # The order of training: too few steps to be remembered, and the whole way is gone.
    order = examine_order(again.path / "distill" / "model", Run.open(one.path))
    assert order.statistic["pairs"] == len(Sequences.load(one.path / "corpus" / "train.safetensors")) // 2
    assert order.commitment == one.commitment
    assert order.log10_p is not None

    # Finished stages hold without the file; what has to be trained again does not begin.
    (one.path / SECRET).rename(tmp_path / "kept")
    held = run(one.path, until="distill", quiet=True)
    assert held.done == []
    with pytest.raises(RunError, match="--secret FILE"):
        run(one.path, overrides={"distill.learning_rate": 2e-3}, until="distill", quiet=True)
    with pytest.raises(UsageError, match="is not the secret of"):
        run(one.path, until="distill", quiet=True, secret=two.path / SECRET)
    run(one.path, until="distill", quiet=True, secret=tmp_path / "kept")
    assert (one.path / SECRET).is_file()


def test_an_explicit_seed_rules_grade_a_out(small_recipe: Any, teacher: Path, tmp_path: Path) -> None:
    recipe = fresh(small_recipe, teacher, seed=7)
    made = run(recipe, tmp_path / "seeded", until="distill", quiet=True)
    assert not (made.path / SECRET).exists()
    assert made.randomness_record()["kind"] == "seed"
    stranger = run(recipe, tmp_path / "stranger", until="distill", quiet=True)
    (finding,) = examine(stranger.path / "distill" / "model", open_owner(made.path), match=False).findings
    assert finding.grade == "C"
    assert finding.log10_p is None
    assert "proves nothing" in finding.verdict
    write_secret(tmp_path / "secret", ONE)
    with pytest.raises(UsageError, match="anybody can repeat its order"):
        examine_order(stranger.path / "distill" / "model", made)
    with pytest.raises(UsageError, match="fixes `seed: 7`"):
        run(made, quiet=True, secret=tmp_path / "secret")


def test_a_run_that_was_begun_with_a_seed_goes_on_with_it(small_recipe: Any, teacher: Path, tmp_path: Path) -> None:
    """0.1.0 took the seed 0 where the recipe had none, and wrote it out in the run's folder."""
    begun = run(fresh(small_recipe, teacher, seed=0), tmp_path, until="corpus", quiet=True)
    recipe = fresh(small_recipe, teacher)
    made = run(recipe, tmp_path, until="corpus", quiet=True)
    assert made.recipe.seed == 0
    assert made.done == []
    assert begun.path == made.path


def test_a_package_says_the_commitment_and_not_the_secret(small_recipe: Any, teacher: Path, tmp_path: Path) -> None:
    recipe = small_recipe(teacher, baseline=False, student={"kind": "shrink", "layers": 1})
    del recipe["seed"]
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    write_secret(tmp_path / "secret", OTHER)
    shown = CliRunner().invoke(app, ["run", str(path), "--secret", str(tmp_path / "secret"), "-q"])
    assert shown.exit_code == 0, shown.output
    made = Run.open(tmp_path / "runs" / "small")
    assert made.summary["randomness"]["commitment"] == OTHER.commitment
    folder = tmp_path / "package"
    shown = CliRunner().invoke(app, ["package", str(made.path), "--out", str(folder)])
    assert shown.exit_code == 0, shown.output
    texts = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
    provenance = json.loads((folder / "provenance.json").read_text())
    internal = provenance["predicate"]["buildDefinition"]["internalParameters"]
    assert internal["randomness"]["commitment"] == OTHER.commitment
    assert not any(OTHER.key.hex().encode() in text or OTHER.key in text for text in texts)


def test_a_damaged_secret_is_set_aside(tmp_path: Path) -> None:
    text = "name: small\ncorpus: {sources: [{kind: python_docs}]}\nteacher: {kind: gguf, path: 'package:a/b'}\n"
    made = Run(tmp_path, parse_recipe(text))
    made.draw_secret()
    assert not made.set_damaged_secret_aside()
    (tmp_path / SECRET).write_text("ab")
    assert made.set_damaged_secret_aside()
    assert made.commitment is None
    made.draw_secret()
    assert made.commitment is not None
    assert (tmp_path / f"{SECRET}.damaged").read_text() == "ab"
