"""The terminal's tables fit 80 columns, whatever the numbers and names are."""

from __future__ import annotations

from typing import Any

import pytest

from stillroom.evaluation import registry
from stillroom.evaluation.metric import Metric
from stillroom.reporting.terminal import print_measures, print_table


def model(divergence: float = 0.622, parameters: int = 134_515_008, speed: float | None = 53.2) -> dict[str, Any]:
    found: dict[str, Any] = {"parameters": parameters}
    for name, value in (("kl_to_teacher", divergence), ("top1_agreement", 0.653), ("bits_per_byte", 1.0213)):
        found |= {name: value, f"{name}_interval": [value * 0.95, value * 1.05]}
    return found | ({"decode_tokens_per_second": speed} if speed else {})


def summary(**more: Any) -> dict[str, Any]:
    compared = {"kl_to_teacher": -0.2109, "kl_to_teacher_interval": [-0.2512, -0.1705]}
    return {
        "teacher": model(0.0),
        "shrunk": model(11.213, speed=None),
        "repaired": model(0.9, speed=None),
        "baseline": model(0.833, speed=None),
        "student": model() | {"gguf_files": [{"type": "Q4_K_M", "bytes": 66_000_000, "kl_to_pytorch": 0.0123}]},
        "compared": {f"student_minus_{name}": dict(compared) for name in ("shrunk", "repaired", "baseline")},
        "interval": "95 % bootstrap-t over documents, 2000 resamplings",
        "heldout_documents": 51,
        "effective_documents": 33.4,
        "bounds": [],
        "measures": {},
    } | more


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("COLUMNS", "80")
    return lambda: capsys.readouterr().out


def lines_fit(text: str) -> None:
    assert text
    assert max(map(len, text.splitlines())) <= 80


def test_the_table_fits_and_has_the_paired_column(shown: Any) -> None:
    print_table(summary())
    text = shown()
    lines_fit(text)
    assert "minus this" in text
    # Whole numbers and intervals, none cropped.
    for words in (
        "-0.211",
        "[-0.251, -0.171]",
        "0.622",
        "[0.591, 0.653]",
        "[62.0, 68.6]",
        "33.4 effective",
        "53 tok/s",
    ):
        assert words in text
    assert "…" not in text


@pytest.mark.parametrize("size", [7, 70_000_000_000])
def test_it_fits_with_numbers_of_any_size(size: int, shown: Any) -> None:
    run = summary()
    for name in ("teacher", "shrunk", "repaired", "baseline", "student"):
        run[name] = model(123.456, parameters=size, speed=123_456.0)
    print_table(run)
    text = shown()
    lines_fit(text)
    assert "…" not in text
    assert "[117.3," in text


def test_too_few_documents_are_said_in_words(shown: Any) -> None:
    run = summary(effective_documents=3.1, heldout_documents=1)
    # One document has no interval: None, or one without width in what 0.1.0 wrote.
    run["student"]["kl_to_teacher_interval"] = None
    run["baseline"]["kl_to_teacher_interval"] = [0.833, 0.833]
    print_table(run)
    text = shown()
    lines_fit(text)
    assert "too few to tell" in " ".join(text.split())
    assert text.count("[too few]") == 2 + 3
    assert "-0.251" not in text


def test_an_unequal_baseline_is_not_compared(shown: Any) -> None:
    reason = "the baseline had 20 seconds of training, the student 100"
    print_table(summary(baseline_comparison={"claimed": False, "reason": reason}))
    text = shown()
    lines_fit(text)
    assert "not compared: the baseline had 20 seconds" in " ".join(text.split())
    # Those with the start of its training stay.
    assert text.count("-0.211") == 2


def test_metrics_with_long_names_fit(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "quite_a_long_name_for_a_metric_of_another_package"
    toy = Metric(name=name, function=lambda _: {}, what="a toy")
    monkeypatch.setattr("stillroom.reporting.terminal.metric", {name: toy, "cost": registry.metric("cost")}.__getitem__)
    key = "source.a_source_that_somebody_called_by_a_whole_sentence.[bold]top1_agreement"
    test = {"student_minus_teacher": {key: {"p_value": 0.00012}}}
    models = {"teacher": {key: 123456.7}, "baseline": {key: 1234567.8}}
    result = {"models": models, "compared": test, "bounds": {key: [123456.7, 123450.0, 123460.0]}}
    print_measures({name: result, "cost": {"bounds": {"bytes": [1.0, None, None]}}})
    text = shown()
    lines_fit(text)
    assert "…" not in text
    # Nothing of the name or the numbers is lost, and a name is no markup.
    first = "".join(line.split(" ")[0] for line in text.splitlines()[2:])
    assert f"{name}.{key}" in first
    for words in ("1.235e+05", "1.235e+06", "0.00012"):
        assert words in text


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("shrink", "shrunk: pruned, neither repaired nor trained."),
        ("existing", "shrunk: the model that was given, before training."),
        ("fresh", "shrunk: random weights, before training."),
    ],
)
def test_what_the_beginning_was_is_said_as_it_was(kind: str, says: str, shown: Any) -> None:
    print_table(summary(student_kind=kind))
    assert says in " ".join(shown().split())
    # Of a summary of an earlier release, which does not say it: it was pruned there.
    print_table(summary())
    assert "shrunk: pruned" in " ".join(shown().split())
