"""The whole path with a teacher behind an endpoint, from one recipe: llama.cpp serves a tiny model on a loopback port."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from teachers.served import llama_server, tiny_endpoint
from tiny_models import tiny_model
from typer.testing import CliRunner

from stillroom import pipeline
from stillroom.cluster.cluster import Cluster
from stillroom.core import files
from stillroom.core.errors import CacheDamaged, RecipeError, RunError, TeacherError, TermsRefused, UsageError
from stillroom.models.load import load_teacher
from stillroom.pipeline import run
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.teacher import EndpointTeacher as EndpointConfig
from stillroom.recipe.teacher import HuggingFaceTeacher
from stillroom.runs.run import Run
from stillroom.signals.cache.manifest import Manifest
from stillroom.signals.cache.observed import Observed
from stillroom.signals.signal import CoarseSignal
from stillroom.teachers.endpoint.ledger import Ledger, Price
from stillroom.teachers.endpoint.received import Received
from stillroom.teachers.endpoint.teacher import open_endpoint


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a server, and the folder of what it serves."""
    folder = tmp_path_factory.mktemp("served")
    teacher, gguf = tiny_endpoint(folder)
    with llama_server(gguf) as url:
        yield url, teacher


def endpoint(url: str, teacher: Path, **values: Any) -> dict[str, Any]:
    return {
        "kind": "endpoint",
        "base_url": url,
        "model": "tiny",
        "tokenizer": str(teacher),
        "sends_text": True,
        "concurrency": 2,
    } | values


def settings_of(small_recipe: Any, url: str, folder: Path, **sections: Any) -> dict[str, Any]:
    made: dict[str, Any] = small_recipe(
        folder,
        teacher=endpoint(url, folder),
        capture={"codec": {"kind": "observed", "k": 20}},
        student={"kind": "fresh", "config": {"num_hidden_layers": 1}},
    )
    return made | sections


def test_lists_are_those_of_the_model_itself(served: tuple[str, Path]) -> None:
    url, folder = served
    teacher = open_endpoint(EndpointConfig.model_validate(endpoint(url, folder)))
    teacher, found = teacher.probed()
    assert found.kind == "llamacpp"
    assert found.tokenizer_checked
    model = load_teacher(HuggingFaceTeacher(name=str(folder)), "cpu", torch.float32).model
    # With half characters, a token that ends generation in the middle, and one at the end.
    text = "A for loop, 漢字 🙂 and more.<|im_end|>\nThe next one."
    ids = [*teacher.tokenizer(text, add_special_tokens=False)["input_ids"], teacher.tokenizer.eos_token_id]
    signal = teacher.server.score(ids, "a text")
    with torch.inference_mode():
        exact = model(torch.tensor([ids])).logits[0, :-1].log_softmax(1)
    assert len(signal) == len(ids) - 1
    assert float((exact.gather(1, signal.ids) - signal.logprobs).abs().max()) < 0.02
    assert torch.equal(exact.argmax(1), signal.ids[:, 0])
    # One request a position, as an older server needs it, says the same.
    teacher.server._forced = False  # type: ignore[attr-defined]
    alone = teacher.server.score(ids, "a text")
    assert float((exact.gather(1, alone.ids) - alone.logprobs).abs().max()) < 0.02
    other = tiny_model("llama", folder.parent / "other", layers=1, vocabulary_size=400)
    wrong = open_endpoint(EndpointConfig.model_validate(endpoint(url, other)))
    with pytest.raises(TeacherError, match="not those of the recipe's tokenizer"):
        wrong.probed()


def history_of(made: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((made.path / "distill" / "history.json").read_text())
    return found


def measured_without_capture(made: Run, folder: Path) -> None:
    shutil.copytree(made.path, folder / "begun" / made.path.name)
    (folder / "begun" / made.path.name / "capture" / "stage.json").unlink()
    pipeline.measure_only(folder / "begun" / made.path.name, ["fidelity"], quiet=True)


def test_the_whole_path_from_one_recipe(
    small_recipe: Any, served: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = served
    monkeypatch.setenv("STILLROOM_TEST_KEY", "sk-Stillroom-path-0123456789")
    priced = endpoint(url, folder, key_env="STILLROOM_TEST_KEY", price={"input": 1, "output": 2, "cap": 10})
    settings = settings_of(small_recipe, url, folder, teacher=priced)
    made = run(Recipe.model_validate(settings), tmp_path, quiet=True)
    summary = json.loads((made.path / "summary.json").read_text())
    for name in ("shrunk", "baseline", "student"):
        assert summary[name]["kl_is"] == "at least"
        assert summary[name]["kl_to_teacher"] > 0
    assert summary["teacher"]["kl_to_teacher"] == 0
    assert summary["teacher"]["parameters"] > summary["student"]["parameters"]
    assert set(summary["measures"]) == {"fidelity", "cost"}
    assert any("at least" in warning for warning in summary["measures"]["fidelity"]["warnings"])
    page = (made.path / "report.html").read_text(encoding="utf-8")
    assert "at least" in page
    assert history_of(made)["kl_is"].endswith("at least")
    with pytest.raises(RunError, match="the stage `capture` is not finished"):
        measured_without_capture(made, tmp_path)
    history = json.loads((made.path / "distill" / "history.json").read_text())["validations"]
    assert min(entry["kl"] for entry in history) < history[0]["kl"]
    ledger = Ledger(made.path / "spending.jsonl", Price(1, 2, 10))
    assert 0 < ledger.spent < 10
    assert made.stage("capture").record["notes"]["spent"]["cost"] == pytest.approx(ledger.spent)
    # The same command again asks for nothing; other training asks for nothing either.
    requests = ledger.totals.requests
    run(Recipe.model_validate(settings), tmp_path, quiet=True)
    changed = settings | {"distill": settings["distill"] | {"objective": "jensen_shannon"}, "baseline": False}
    run(Recipe.model_validate(changed), tmp_path, quiet=True)
    assert Ledger(made.path / "spending.jsonl", Price()).totals.requests == requests
    for path in made.path.rglob("*"):
        if path.is_file():
            assert b"sk-Stillroom-path" not in path.read_bytes(), path


def test_what_a_cache_has_is_not_asked_for_again(
    small_recipe: Any, served: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = served
    monkeypatch.setenv("STILLROOM_TEST_KEY", "sk-Stillroom-path-0123456789")
    keyed = endpoint(url, folder, key_env="STILLROOM_TEST_KEY")
    settings = settings_of(small_recipe, url, folder, teacher=keyed)

    def captured(top: int = 20, **teacher: Any) -> int:
        """Requests of the run, after the stage with another recipe."""
        changed = settings | {
            "teacher": keyed | {"top": top} | teacher,
            "capture": {"codec": {"kind": "observed", "k": top}},
        }
        made = run(Recipe.model_validate(changed), tmp_path, quiet=True, until="capture")
        assert made.stage("capture").record is not None
        return Ledger(made.path / "spending.jsonl", Price()).totals.requests

    first = captured()
    # Another list is another cache; the first is kept, and serves again.
    second = captured(10)
    assert second > first
    assert captured() == second
    assert captured(10) == second
    # Nothing is asked for where everything is there: the server may be gone, and the key with it.
    monkeypatch.delenv("STILLROOM_TEST_KEY")
    assert captured(concurrency=4, base_url="http://127.0.0.1:9") == second
    assert captured(10, licence="MIT", base_url="http://127.0.0.1:9", attempts=1) == second
    record = json.loads((tmp_path / settings["name"] / "capture" / "teacher.json").read_text())
    assert record["licence"] == "MIT"
    with pytest.raises(TeacherError, match="STILLROOM_TEST_KEY"):
        captured(5)
    # A teacher on this machine takes the folder, and what was paid for stays.
    local = settings | {
        "teacher": {"kind": "huggingface", "name": str(folder)},
        "capture": {"codec": {"kind": "threshold"}},
    }
    made = run(Recipe.model_validate(local), tmp_path, quiet=True, until="capture")
    assert len(list((made.path / "capture" / "cache" / "earlier").iterdir())) == 2
    assert captured(10, base_url="http://127.0.0.1:9", key_env=None) == second


def begin_cache(cache: Path, k: int) -> None:
    """An endpoint's cache with lists of ``k`` ids of nine, and one shard."""
    from stillroom.recipe.capture import ObservedCodec
    from stillroom.signals.cache.identity import CacheIdentity
    from stillroom.signals.cache.manifest import Manifest
    from stillroom.teachers.aside import FINGERPRINT

    identity = CacheIdentity(
        teacher_digest=f"{k:064x}",
        tokenizer_digest="0" * 64,
        vocabulary_size=9,
        temperature=1.0,
        codec=ObservedCodec(k=k),
        codec_version=1,
        seed=0,
        dtype="stated",
    )
    Manifest(identity=identity).save(cache)
    listed = min(k, 9)
    known = {"format": 1, "model": "m", "text": [1], "noise": 0.0}
    known |= {"ids": [list(range(listed))], "logprobs": [[-1.0] * listed]}
    (cache / FINGERPRINT).write_text(json.dumps(known))
    (cache / "shard-0.bin").write_bytes(bytes([k]))


def test_a_cache_that_is_set_aside_survives_a_kill(tmp_path: Path) -> None:
    from stillroom.recipe.capture import ObservedCodec
    from stillroom.teachers.aside import EARLIER
    from stillroom.teachers.endpoint.capture import set_aside

    cache = tmp_path / "cache"
    cache.mkdir()
    begin_cache(cache, 3)
    assert not set_aside(cache, "m", ObservedCodec(k=3), 0)
    for cut in range(3):
        # A kill after so many files were moved.
        moving = cache / EARLIER / "moving"
        moving.mkdir(parents=True)
        for path in sorted(
            (path for path in cache.iterdir() if path.is_file()), key=lambda path: "manifest" in path.name
        )[:cut]:
            path.rename(moving / path.name)
        set_aside(cache, "m", ObservedCodec(k=4), 0)
        assert not (cache / "shard-0.bin").exists()
        begin_cache(cache, 4)
        assert set_aside(cache, "m", ObservedCodec(k=3), 0)
        assert (cache / "shard-0.bin").read_bytes() == b"\3"
        assert set_aside(cache, "m", ObservedCodec(k=4), 0)
        assert (cache / "shard-0.bin").read_bytes() == b"\4"
        assert set_aside(cache, "m", ObservedCodec(k=3), 0)
        shutil.rmtree(cache / EARLIER)


def test_a_list_of_the_whole_vocabulary_is_as_long_as_was_asked_for(tmp_path: Path) -> None:
    from stillroom.recipe.capture import ObservedCodec
    from stillroom.teachers.endpoint.capture import begun_with, set_aside

    begin_cache(tmp_path, 20)
    assert begun_with(tmp_path, "m", 20) is not None
    assert begun_with(tmp_path, "m", 8) is None
    assert set_aside(tmp_path, "m", ObservedCodec(k=20), 0) is None
    assert (tmp_path / "shard-0.bin").is_file()
    assert set_aside(tmp_path, "m", ObservedCodec(k=8), 0)


@pytest.mark.parametrize(
    "words", ["{", "[]", '{"format": 1, "model": "m", "text": [], "ids": [], "logprobs": [], "noise": 0}']
)
def test_a_fingerprint_that_cannot_be_read_is_named_and_nothing_is_paid_for_again(tmp_path: Path, words: str) -> None:
    from stillroom.recipe.capture import ObservedCodec
    from stillroom.teachers.endpoint.capture import set_aside

    begin_cache(tmp_path, 3)
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / ".DS_Store").write_text("of a file manager")
    assert set_aside(tmp_path, "m", ObservedCodec(k=3), 0) is None
    (tmp_path / "fingerprint.json").write_text(words)
    with pytest.raises(CacheDamaged, match=r"fingerprint\.json cannot be read"):
        set_aside(tmp_path, "m", ObservedCodec(k=3), 0)
    assert (tmp_path / "shard-0.bin").is_file()


def test_a_cache_that_is_taken_up_again_survives_a_kill(tmp_path: Path) -> None:
    from stillroom.recipe.capture import ObservedCodec
    from stillroom.teachers.aside import EARLIER
    from stillroom.teachers.endpoint.capture import set_aside

    for cut in range(4):
        cache = tmp_path / str(cut)
        taken = cache / EARLIER / "taken"
        cache.mkdir()
        begin_cache(cache, 3)
        taken.mkdir(parents=True)
        # So many of its files are back already, the manifest last; and what comes next asks for something else.
        files = sorted((path for path in cache.iterdir() if path.is_file()), key=lambda path: "manifest" in path.name)
        assert len(files) == 3
        for path in files[cut:]:
            path.rename(taken / path.name)
        assert set_aside(cache, "m", ObservedCodec(k=5), 0)
        assert not (cache / "shard-0.bin").exists()
        assert set_aside(cache, "m", ObservedCodec(k=3), 0) is None
        assert (cache / "shard-0.bin").read_bytes() == b"\3"
        assert [path.name for path in cache.iterdir() if "manifest" in path.name]


def test_an_endpoint_beside_a_teacher_that_is_here(
    small_recipe: Any, served: tuple[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = served
    sources = []
    for index in range(2):
        part = tmp_path / f"part{index}"
        part.mkdir()
        for number, file in enumerate(sorted(text.iterdir())):
            if number % 2 == index:
                (part / file.name).write_bytes(file.read_bytes())
        sources.append({"kind": "text", "path": str(part)} | ({"teacher": "far"} if index else {}))
    settings = settings_of(
        small_recipe,
        url,
        folder,
        teacher={"kind": "huggingface", "name": str(folder)},
        teachers={"far": endpoint(url, folder)},
        baseline=False,
    )
    settings["corpus"] = settings["corpus"] | {"sources": sources}
    settings["terms"]["decisions"].append(settings["terms"]["decisions"][0] | {"subject": "far"})
    made = run(Recipe.model_validate(settings), tmp_path, quiet=True)
    summary = json.loads((made.path / "summary.json").read_text())
    assert summary["student"]["kl_is"] == "at least"
    assert [entry["called"] for entry in summary["teachers"]] == ["teacher", "far"]
    assert Ledger(made.path / "spending-far.jsonl", Price()).totals.requests > 0
    assert not (made.path / "spending.jsonl").exists()
    # No key is needed where everything is there, and none is taken for set where something is not.
    monkeypatch.delenv("STILLROOM_TEST_KEY", raising=False)
    cache = made.path / "capture" / "cache"
    requests = Ledger(made.path / "spending-far.jsonl", Price()).totals.requests
    gone = {"far": endpoint("http://127.0.0.1:9", folder, key_env="STILLROOM_TEST_KEY", licence="MIT")}
    run(Recipe.model_validate(settings | {"teachers": gone}), tmp_path, quiet=True, until="capture")
    assert Ledger(made.path / "spending-far.jsonl", Price()).totals.requests == requests
    gone["far"]["model"] = "another"
    with pytest.raises(TeacherError, match="STILLROOM_TEST_KEY"):
        run(Recipe.model_validate(settings | {"teachers": gone}), tmp_path, quiet=True, until="capture")
    # Under another name nothing is paid for again, where the same model answers; not what is in no cache yet, either.
    (far,) = (cache / "teachers").iterdir()
    identity = Manifest.load(far).identity
    codec = Observed(20, identity.vocabulary_size)
    mine = files.digest_json(identity.model_dump(mode="json"))
    signal = codec.observe(CoarseSignal(torch.tensor([[3]]), torch.tensor([[0.5]]).log(), torch.tensor([0.5])))
    for digest in (mine, "cd" * 32):
        Received(made.path / "received-far.bin", codec, digest).add("ab" * 32, signal)
    renamed = json.loads(json.dumps(settings).replace('"far"', '"remote"'))
    run(Recipe.model_validate(renamed), tmp_path, quiet=True, until="capture")
    assert 0 < Ledger(made.path / "spending-remote.jsonl", Price()).totals.requests <= 2
    assert list(Received(made.path / "received-remote.bin", codec, mine).read()) == ["ab" * 32]
    assert list(Received(made.path / "received-far.bin", codec, "cd" * 32).read()) == ["ab" * 32]
    mixed = settings | {
        "corpus": settings["corpus"] | {"sources": [sources[0] | {"teacher": {"far": 1, "teacher": 1}}]}
    }
    with pytest.raises(RecipeError, match="mixes the teacher `far`, which is behind an endpoint"):
        run(Recipe.model_validate(mixed), tmp_path, quiet=True)


def test_a_student_that_exists(small_recipe: Any, served: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = served
    student = tiny_model("llama", tmp_path / "student", layers=1, hidden=32, seed=5)
    settings = settings_of(
        small_recipe, url, folder, student={"kind": "existing", "name": str(student)}, baseline=False
    )
    made = run(Recipe.model_validate(settings), tmp_path, quiet=True)
    summary = json.loads((made.path / "summary.json").read_text())
    assert summary["student"]["kl_to_teacher"] <= summary["shrunk"]["kl_to_teacher"]


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"student": {"kind": "shrink", "layers": 1}}, "prunes the teacher's weights"),
        ({"capture": {"codec": {"kind": "threshold"}}}, "kind: observed, k: 20"),
        ({"capture": {"codec": {"kind": "observed", "k": 10}}}, "Give both the same value"),
        ({"capture": {"codec": {"kind": "observed", "k": 20}, "temperature": 2.0}}, "at temperature 1"),
        ({"capture": {"codec": {"kind": "observed", "k": 20}, "path": "s3://bucket/cache"}}, "is in an object store"),
        ({"evaluate": {"ceilings": {"fidelity.kl_to_teacher": 1.5}}}, "is a lower bound where an endpoint lists"),
        ({"server": "fireworks"}, "Set `teacher.top: 5`, and `capture: {codec: {kind: observed, k: 5}}`"),
    ],
)
def test_what_an_endpoint_cannot_do_is_refused_before_anything_is_sent(
    small_recipe: Any, tmp_path: Path, sections: dict[str, Any], words: str
) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=1, hidden=16)
    # Nobody listens there: a request would be another error.
    server = {"server": sections["server"]} if "server" in sections else {}
    sections = {key: value for key, value in sections.items() if key != "server"}
    settings = settings_of(small_recipe, "http://127.0.0.1:9", teacher, **sections)
    settings["teacher"] |= server
    with pytest.raises((RecipeError, TeacherError)) as failed:
        run(Recipe.model_validate(settings), tmp_path, quiet=True)
    assert words in str(failed.value)


def test_several_processes_do_not_capture_from_an_endpoint(small_recipe: Any, tmp_path: Path) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=1, hidden=16)
    recipe = Recipe.model_validate(settings_of(small_recipe, "http://127.0.0.1:9", teacher))
    with pytest.raises(UsageError, match=r"--part 1/2: .* behind an endpoint"):
        pipeline.capture_part(recipe, "1/2", tmp_path, quiet=True)
    with pytest.raises(UsageError, match=r"--ray local: .* behind an endpoint"):
        pipeline.run(recipe, tmp_path, quiet=True, cluster=Cluster(ray="local"))
    assert not (tmp_path / "corpus").exists()


def test_hosts_and_models_go_through_the_terms_gate(small_recipe: Any, tmp_path: Path) -> None:
    teacher = tiny_model("llama", tmp_path / "teacher", layers=1, hidden=16)
    for values, words in (
        ({"base_url": "https://api.openai.com", "service": "somebody"}, "OpenAI"),
        ({"base_url": "https://127.0.0.1:9", "model": "openai/gpt-4o-mini"}, "OpenAI"),
        ({"base_url": "https://127.0.0.1:9", "service": "Anthropic"}, "Anthropic"),
    ):
        settings = settings_of(small_recipe, "http://127.0.0.1:9", teacher)
        settings["teacher"] |= values
        with pytest.raises(TermsRefused, match=words):
            run(Recipe.model_validate(settings), tmp_path, quiet=True)
    # Who runs it is not known, and nobody decided.
    settings = settings_of(small_recipe, "http://127.0.0.1:9", teacher, terms={})
    settings["teacher"] |= {"base_url": "https://models.example.com", "service": "Example"}
    with pytest.raises(TermsRefused, match=r"not known"):
        run(Recipe.model_validate(settings), tmp_path, quiet=True)


def test_the_plan_says_what_is_sent_and_asks_for_nothing(small_recipe: Any, tmp_path: Path) -> None:
    from stillroom.planning.plan import make_plan, show_plan

    teacher = tiny_model("llama", tmp_path / "teacher", layers=2)
    settings = settings_of(small_recipe, "http://127.0.0.1:9", teacher)
    settings["teacher"] |= {"price": {"input": 1000, "output": 2000, "cap": 50}, "server": "vllm"}
    plan = make_plan(Recipe.model_validate(settings), tmp_path)
    asked = plan["endpoint"]
    assert asked["tokens_in"] >= plan["tokens"]["train"] + plan["tokens"]["heldout"]
    assert asked["cost"] == pytest.approx((asked["tokens_in"] * 1000 + asked["tokens_out"] * 2000) / 1e6)
    assert plan["stages"]["capture"]["disk_bytes"] > 0
    show_plan(plan)


def test_the_plan_of_a_student_with_fewer_ids_than_the_teacher(small_recipe: Any, tmp_path: Path) -> None:
    from stillroom.planning.plan import make_plan

    teacher = tiny_model("llama", tmp_path / "teacher", layers=1)
    student = {"kind": "fresh", "config": {"num_hidden_layers": 1}, "vocabulary": {"keep": "corpus", "size": 420}}
    settings = settings_of(small_recipe, "http://127.0.0.1:9", teacher, student=student)
    settings["teacher"] |= {"server": "vllm"}
    plan = make_plan(Recipe.model_validate(settings), tmp_path)
    assert plan["stages"]["distill"]["seconds"] > 0


def test_what_another_name_spent_counts(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "spending-far.jsonl", Price(1, 2, 10))
    first.book(first.reserve(1000, 10, "a piece"), "200", 1000, 10)
    renamed = Ledger(tmp_path / "spending-remote.jsonl", Price(1, 2, 10), [tmp_path / "spending-far.jsonl"])
    assert renamed.spent == first.spent > 0
    assert renamed.totals.requests == 1


def test_probe_on_the_command_line(served: tuple[str, Path]) -> None:
    from stillroom.cli.app import app

    url, folder = served
    told = CliRunner().invoke(app, ["teacher", "probe", url, "--model", "tiny", "--tokenizer", str(folder), "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found["server"] == "llamacpp"
    assert found["tokenizer_checked"] is True
    assert found["top"] == 20
    words = CliRunner().invoke(app, ["teacher", "probe", url, "--model", "tiny", "--tokenizer", str(folder)])
    assert "llamacpp" in words.stdout
