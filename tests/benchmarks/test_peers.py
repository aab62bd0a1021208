"""Parts of the comparison with peers that need no training."""

import math
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_models import make_model, tiny_model

from benchmarks import judge, peers
from benchmarks.quickstart import unseen
from stillroom.core.files import write_json
from stillroom.evaluation.tasks.task_files import read_task
from stillroom.models.load import count_parameters

TEXTS = [
    f"shelf.{name}(path)\n\nOpens the {name} of a shelf for reading and writing. The {name} keeps every value that "
    f"was stored under a {other}. Callers have to close the {name} after they have used the {other}."
    for name, other in (
        ("drawer", "label"),
        ("cabinet", "number"),
        ("folder", "title"),
        ("basket", "colour"),
        ("crate", "size"),
    )
]


def test_six_tasks_are_written_that_both_harnesses_read(tmp_path: Path) -> None:
    peers.write_tasks(tmp_path, TEXTS, 4)
    files = sorted(tmp_path.glob("*.yaml"))
    assert len(files) == 6
    for file in files:
        task = read_task(file, None)
        assert 1 <= len(task.items) <= 4
        for item in task.items:
            assert len(set(item.choices)) == len(item.choices)
    first = {file.name: file.read_bytes() for file in tmp_path.glob("*.jsonl")}
    peers.write_tasks(tmp_path, TEXTS, 4)
    assert {file.name: file.read_bytes() for file in tmp_path.glob("*.jsonl")} == first


def test_the_right_choice_is_the_right_one() -> None:
    for row in peers.addition((), random.Random(0))[:50]:
        left, right = row["prompt"].removesuffix(" =").split(" + ")
        assert row["choices"][row["answer"]] == str(int(left) + int(right))
        assert len(set(row["choices"])) == 4
    for row in peers.counting((), random.Random(0))[:50]:
        numbers = [int(part) for part in row["prompt"].rstrip(",").split(", ")]
        assert int(row["choices"][row["answer"]]) == 2 * numbers[-1] - numbers[-2]


def judged(factor: float) -> dict[str, list[float]]:
    generator = np.random.default_rng(0)
    positions = generator.integers(20, 200, 30).astype(float)
    kl = positions * generator.gamma(8, 1 / 8, 30) * factor
    return judge.Judged(kl, positions / 2, positions, 2 * positions, 4 * positions, kl).sums()


def test_ours_over_the_best_peer() -> None:
    cells: dict[str, Any] = {
        peers.label(10, name, seed): {"sums": judged(factor)}
        for name, factor in (("stillroom", 0.5), ("trl_pruned", 1.0), ("trl_repaired", 0.8))
        for seed in (0, 1)
    }
    found = peers.compared(cells, 10)
    assert found is not None
    assert min(found, key=lambda name: found[name]["kl"]) == "trl_repaired"
    assert found["trl_repaired"]["kl_ratio"]["value"] == pytest.approx(0.5 / 0.8)
    assert found["trl_repaired"]["seeds"] == [0, 1]
    assert peers.compared(cells, 30) is None


def test_the_best_peer_with_a_start_of_its_own_has_a_figure_too(tmp_path: Path) -> None:
    bench = peers.Bench(tmp_path, peers.RECIPE, {})
    for name, factor in (("stillroom", 0.5), ("trl_pruned", 1.0), ("trl_repaired", 0.8), ("top_k_pruned", 1.25)):
        bench.cells[peers.label(10, name, 0)] = {"sums": judged(factor)}
    figures, details = peers.figures_of(bench)
    assert figures["kl_over_best_peer_10min"] == pytest.approx(0.5 / 0.8)
    assert figures["kl_over_best_own_start_10min"] == pytest.approx(0.5)
    assert (details["ratios"]["10min"]["best_peer"], details["ratios"]["10min"]["best_own_start"]) == (
        "trl_repaired",
        "trl_pruned",
    )
    assert figures["kl_over_best_peer_30min"] is None
    assert figures["kl_over_best_own_start_30min_interval"] is None


def test_what_a_run_will_take_is_foretold_where_its_text_ends_too() -> None:
    def spent(tokens: int) -> tuple[dict[str, float], float]:
        captured = tokens / -(-tokens // 150_000)
        stages = {"corpus": 4.0, "capture": 0.5e-3 * captured, "shrink": 100.0, "distill": 1e-3 * tokens}
        return stages, 2 * sum(stages.values())

    for known in (50_000, 140_000, 160_000, 400_000):
        stages, seconds = spent(known)
        for tokens in (60_000, 150_000, 260_000, 440_000):
            cost = peers.foretold(seconds, stages, known, 150_000, spent(tokens)[1])
            assert cost.tokens(spent(tokens)[1] + 1e-6, 1) == pytest.approx(tokens, abs=1), (known, tokens)


def test_longer_runs_take_larger_steps_and_shorter_ones_the_recipes(tmp_path: Path) -> None:
    bench = peers.Bench(tmp_path, peers.RECIPE, {})
    assert bench.steps(57_344) == bench.steps(410_000) == {}
    longer = bench.steps(1_780_000)
    assert longer["batch_tokens"] == 3 * 1024
    assert longer["learning_rate"] == pytest.approx(2e-4 * math.sqrt(3))


def test_rates_are_tried_until_both_neighbours_of_the_best_are_worse() -> None:
    def tried(best: float) -> list[float]:
        found: dict[str, float] = {}
        while (rate := peers.next_rate(found)) is not None:
            found[rate] = abs(math.log(float(rate) / best))
        return [float(rate) for rate in found]

    assert tried(3e-4) == [3e-4, 1e-4, 1e-3]
    assert tried(1e-4) == [3e-4, 1e-4, 3e-5]
    assert tried(3e-3) == [3e-4, 1e-4, 1e-3, 3e-3, 1e-2]
    assert tried(1e-5) == [3e-4, 1e-4, 3e-5, 1e-5, 3e-6]
    assert len(tried(1.0)) == len(set(tried(1.0))) <= peers.MOST_RATES


def test_a_rate_that_diverges_is_never_the_best_one() -> None:
    for rates in ({"0.0003": math.nan, "0.0001": 0.5, "0.001": math.inf}, {"0.0001": 0.5, "0.0003": math.nan}):
        assert peers.best_rate(rates) == "0.0001"
    assert peers.next_rate({"0.0003": math.nan, "0.0001": math.nan}) == "3e-05"


def test_a_rate_that_diverges_is_kept(tmp_path: Path) -> None:
    bench = peers.Bench(tmp_path, peers.RECIPE, {})
    bench.kept["rates"] = {"10min/trl_pruned": {"0.0003": math.nan}}
    bench.keep()
    assert math.isnan(peers.Bench(tmp_path, peers.RECIPE, {}).kept["rates"]["10min/trl_pruned"]["0.0003"])


def test_what_was_measured_by_a_run_of_ours_goes_with_it(tmp_path: Path) -> None:
    bench = peers.Bench(tmp_path, peers.RECIPE, {})
    wanted = [(10, name, seed) for name in (peers.OURS, *peers.PEERS) for seed in (0, 1)]
    for minutes, name, seed in [*wanted, (30, "stillroom", 0)]:
        bench.cells[peers.label(minutes, name, seed)] = {"model": "m", "sums": {}, "measured": {}}
    bench.kept["tasks"] = {key: {} for key in bench.cells}
    bench.kept["rates"] = {"10min/trl_repaired": {"0.0003": 1.0}, "10min/trl_pruned": {"0.0003": 1.0}}
    found = bench.again(["10min/stillroom/0", "30min/stillroom/0"], wanted)
    assert set(found) == {(10, name, 0) for name in (peers.OURS, *peers.PEERS)} | {(30, "stillroom", 0)}
    gone = {"10min/stillroom/0", "30min/stillroom/0", "10min/trl_repaired/0"}
    assert not gone & (bench.cells.keys() | bench.kept["tasks"].keys())
    # The others keep their model, and are measured again; those of another seed are as they were.
    assert bench.cells["10min/trl_pruned/0"] == {"model": "m"}
    assert bench.cells["10min/trl_repaired/1"] == bench.cells["10min/stillroom/1"]
    assert list(bench.kept["rates"]) == ["10min/trl_pruned"]
    assert bench.again(["top_k_pruned"], wanted) == [(10, "top_k_pruned", 0), (10, "top_k_pruned", 1)]
    for name in ("nobody", "10min/nobody/0"):
        with pytest.raises(SystemExit, match="no such cell"):
            bench.again([name], wanted)


def test_cells_of_other_code_are_told(tmp_path: Path) -> None:
    bench = peers.Bench(tmp_path, peers.RECIPE, {})
    mine = {"folder": "f", "sums": {}, "from": bench.here, "measured_from": bench.here}
    bench.cells |= {"a": mine, "b": mine | {"from": bench.here | {"code": "another"}}, "c": {"folder": "f", "sums": {}}}
    assert bench.earlier() == ["b", "c"]


def test_an_environment_of_other_packages_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def called(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        made.append(command[2])
        (tmp_path / ".venvs" / "a").mkdir(parents=True, exist_ok=True)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(peers, "ROOT", tmp_path)
    monkeypatch.setattr(peers.subprocess, "run", called)
    (tmp_path / ".venvs" / "a").mkdir(parents=True)
    (tmp_path / ".venvs" / "a" / "whole").touch()
    for packages in (["trl"], ["trl"], ["trl", "datasets"]):
        peers.environment("a", *packages)
    assert made == ["venv", "pip"] * 2


def test_torch_pruning_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(command: list[str], **_: Any) -> None:
        (tmp_path / "target").mkdir()
        raise subprocess.CalledProcessError(3, command)

    monkeypatch.setattr(peers.torch_pruning_peer, "peer_folder", lambda: "")
    monkeypatch.setattr(peers.torch_pruning_peer.subprocess, "run", failed)
    with pytest.raises(peers.torch_pruning_peer.LeftOut, match="exit code 3"):
        peers.torch_pruning_peer.cut(tmp_path, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_the_cell_nearest_to_the_budget_foretells_the_next(tmp_path: Path) -> None:
    bench = peers.Bench(tmp_path, peers.RECIPE, {10: 100.0})
    bench.kept["material"] = {"train_tokens_of_ours": 10**6}
    stages = {"shrink": 1.0, "capture": 1.0, "distill": 2.0}
    bench.kept["calibration"] = {"tokens": 1000, "cpu_seconds": 10.0, "stages": stages}
    assert bench.first_guess(10, 0).fixed == pytest.approx(2.5)
    for seed, spent in ((0, 60.0), (1, 96.0), (2, 130.0)):
        bench.cells[peers.label(10, "stillroom", seed)] = {"tokens": 9000, "cpu_seconds": spent, "stages": stages}
    assert bench.first_guess(10, 3).fixed == pytest.approx(24.0)
    assert bench.first_guess(10, 1).fixed == pytest.approx(32.5)


def test_a_cells_tokens_are_those_that_its_run_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = peers.Bench(tmp_path, peers.RECIPE, {})
    bench.kept["material"] = {"train_tokens_of_ours": 272_000}

    def ran(command: list[Any], **_: Any) -> peers.budget.Spent:
        asked = yaml.safe_load(command[4].read_text(encoding="utf-8"))
        note = {"notes": {"tokens": {"train": asked["corpus"]["train_tokens"]}}}
        write_json(tmp_path / "runs" / asked["name"] / "corpus" / "stage.json", note)
        return peers.budget.Spent(1.0, 1.0, 1, 1.0, 0)

    monkeypatch.setattr(peers.budget, "run", ran)
    # Two passes over equally many tokens.
    assert bench.run_ours("a", 400_384, 0)[2] == 399_360
    assert bench.run_ours("b", 57_344, 0)[2] == 57_344


def test_torch_prunings_start_is_opened_with_the_teachers_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = peers.Bench(tmp_path / "work", peers.RECIPE, {})
    tiny_model("llama", bench.folder / "teacher", layers=8)
    asked = count_parameters(make_model("llama", rows=512, layers=2))
    ratios = []

    def cut(_teacher: Path, target: Path, ratio: float) -> float:
        # It writes a model without a tokenizer; the first one is too small.
        ratios.append(ratio)
        make_model("llama", rows=512, layers=len(ratios)).save_pretrained(target)
        return 7.0

    monkeypatch.setattr(peers.torch_pruning_peer, "cut", cut)
    assert bench._torch_pruned(asked, tmp_path / "start") == 7.0
    assert len(ratios) == 2
    assert ratios[0] > ratios[1]
    assert count_parameters(judge.open_model(tmp_path / "start")) == asked


def test_chats_that_were_trained_on_are_found(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    class Letters:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return "".join(map(chr, ids))

    chats: list[judge.Chat] = [
        ({"role": "user", "content": "?"}, {"role": "assistant", "content": text}) for text in TEXTS
    ]
    (tmp_path / "corpus").mkdir()
    row = torch.tensor([ord(letter) for letter in TEXTS[2]])
    save_file({"ids": row[None]}, tmp_path / "corpus" / "train.safetensors")
    assert unseen(chats, tmp_path, Letters()) == [chats[0], chats[1], chats[3], chats[4]]


def test_a_work_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    peers.Bench(tmp_path, peers.RECIPE, {}, quick=True).keep()
    peers.Bench(tmp_path, peers.RECIPE, {}, quick=True)
    with pytest.raises(SystemExit, match="with --quick"):
        peers.Bench(tmp_path, peers.RECIPE, {}, quick=False)
    other = tmp_path / "other.yaml"
    other.write_text(peers.RECIPE.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"another other\.yaml"):
        peers.Bench(tmp_path, other, {}, quick=True)


@pytest.mark.parametrize("name", ["harness_side", "peer_training", "teaching_peer"])
def test_a_program_that_is_started_by_its_path_finds_the_libraries(name: str) -> None:
    """Python puts the program's folder first, where `tokenizers.py` would hide the library; and has no Stillroom there."""
    lines = (peers.ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8").splitlines()
    put = next(number for number, line in enumerate(lines) if line.startswith("sys.path[0] = "))
    assert not [
        line for line in lines[:put] if re.match(r"(import|from) (torch|transformers|safetensors|lm_eval)", line)
    ]
    ours = "\n".join(line for line in lines[put:] if line.startswith(("from benchmarks", "import benchmarks")))
    without = f"import sys; sys.modules['stillroom'] = None\n{ours}"
    subprocess.run([sys.executable, "-c", without], cwd=peers.ROOT, check=True)
