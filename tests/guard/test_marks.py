"""Keys, marks while serving, traces, twin answers and honeypots."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path

import numpy as np
import pytest
from tiny_models import make_tokenizer, tiny_model
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.core.errors import UsageError
from stillroom.core.marks import MarkKey, is_word, list_keys, new_key, read_key, require_period, word_biases
from stillroom.core.secret import Secret, write_secret
from stillroom.guard.coins import (
    coins_finding,
    coins_test,
    honeypot_findings,
    honeypot_rows,
    preferences,
    read_twins,
    served,
)
from stillroom.guard.lineage_match import open_model
from stillroom.guard.marks import frequencies, holm, mark_score, trace, weights_against, words_of

KEY = MarkKey("test", Secret(bytes(range(32))))
WORDS = [f"w{chr(97 + a)}{chr(97 + b)}{chr(97 + c)}".encode() for a in range(10) for b in range(10) for c in range(10)]


def test_keys_are_made_listed_and_private(tmp_path: Path) -> None:
    run = CliRunner().invoke
    made = run(app, ["guard", "key", "new", "server", "--folder", str(tmp_path), "--json"])
    assert made.exit_code == 0, made.output
    assert stat.S_IMODE((tmp_path / "server.mark").stat().st_mode) == 0o600
    listed = run(app, ["guard", "key", "list", "--folder", str(tmp_path), "--json"])
    assert json.loads(listed.stdout)[0]["commitment"] == json.loads(made.stdout)["commitment"]
    assert read_key(tmp_path / "server.mark").secret.key.hex() not in made.stdout + listed.stdout
    with pytest.raises(UsageError, match="never overwritten"):
        new_key(tmp_path, "server")
    with pytest.raises(UsageError, match="no name of a key"):
        new_key(tmp_path, "../server")
    with pytest.raises(UsageError, match="no such folder"):
        list_keys(tmp_path / "none")
    with pytest.raises(UsageError, match="no month"):
        require_period("2026-13")


def test_a_key_lists_half_and_another_half_in_another_month() -> None:
    one = [KEY.listed(word, "2026-01") for word in WORDS]
    other = [KEY.listed(word, "2026-02") for word in WORDS]
    assert 440 < sum(one) < 560
    assert 440 < sum(a == b for a, b in zip(one, other, strict=True)) < 560
    assert one == [KEY.listed(word, "2026-01") for word in WORDS]


def test_words_alone_are_biased() -> None:
    pieces = [(0, b"<s>"), (1, b" the"), (2, b"123"), (3, b"{"), (4, "é".encode()), (5, b"\xc3"), (6, b" "), (7, b"ab")]
    assert [token for token, _ in word_biases(KEY, pieces, "2026-01", 3.0)] == [1, 4, 7]
    assert {abs(bias) for _, bias in word_biases(KEY, pieces, "2026-01", 3.0)} == {1.5}
    assert len(word_biases(KEY, pieces, "2026-01", words=2)) == 2
    assert not is_word(b"")


def marked_frequencies(key: MarkKey, delta: float, tokens: int, rng: np.random.Generator) -> dict[bytes, float]:
    """Words drawn from a Zipf law that a key's mark has shifted."""
    logits = -np.log(np.arange(1, len(WORDS) + 1)) + delta * np.array([key.listed(w, "2026-01") - 0.5 for w in WORDS])
    share = np.exp(logits) / np.exp(logits).sum()
    counts = rng.multinomial(tokens, share)
    return dict(zip(WORDS, (counts / tokens).tolist(), strict=True))


def test_a_trace_finds_the_key_and_no_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    keys = [tmp_path / f"{name}.mark" for name in ("served", "other", "third")]
    for number, path in enumerate(keys):
        write_secret(path, Secret(bytes([number]) * 32))  # not drawn: a key may list the commonest words alike
    suspect = marked_frequencies(read_key(keys[0]), 1.0, 10_000, rng)
    reference = marked_frequencies(KEY, 0.0, 30_000, rng)
    weights = weights_against(suspect, reference)
    found = trace(weights, keys, ["2026-01", "2026-02"], "frequencies")
    assert [finding.verdict.startswith("learnt from") for finding in found] == [True, False, False]
    assert all(finding.grade == "A" for finding in found)
    assert found[0].log10_p is not None
    assert found[0].log10_p < -6
    assert "Holm over 3 keys" in found[0].correction
    with pytest.raises(UsageError, match="given twice"):
        trace(weights, [keys[0], keys[0]], ["2026-01"], "frequencies")
    # The reference alone carries nothing.
    assert mark_score(reference, read_key(keys[0]), "2026-01")[0] > -6


def test_the_rate_under_random_keys_is_at_most_nominal() -> None:
    """The model is fixed, and 3,000 keys are drawn."""
    rng = np.random.default_rng(5)
    weights = weights_against(marked_frequencies(KEY, 1.0, 3000, rng), marked_frequencies(KEY, 0.0, 3000, rng))
    words = dict(sorted(weights.items(), key=lambda item: -abs(item[1]))[:80])
    found = np.array(
        [mark_score(words, MarkKey("k", Secret(n.to_bytes(32, "big"))), "2026-01")[0] for n in range(3000)]
    )
    assert np.mean(found <= math.log10(0.05)) <= 0.05
    assert np.mean(found <= -3) <= 0.001
    assert np.mean(found < 0) > 0.4


def test_holm_adjusts_in_order() -> None:
    assert holm([-10.0, -1.0, -3.0]) == pytest.approx([-10 + math.log10(3), -1.0, -3 + math.log10(2)])
    assert holm([-1.0, -1.0]) == pytest.approx([-1 + math.log10(2)] * 2)


@pytest.mark.parametrize("kind", ["bpe", "bpe_fallback"])
def test_words_of_tokenizers_of_both_kinds(kind: str) -> None:
    tokenizer = make_tokenizer(kind, 512)  # type: ignore[arg-type]
    words = words_of(tokenizer)
    assert len(words) > 100
    for index in list(words)[:50]:
        assert words[index].decode().strip() == tokenizer.decode([index]).strip()
    shares = frequencies(tokenizer, "the value of the function")
    assert 0 < sum(shares.values()) <= 1
    assert max(shares, key=lambda word: shares[word]).strip() in b"the value of the function"


def twins_file(folder: Path, count: int) -> Path:
    path = folder / "twins.jsonl"
    rows = [{"prompt": f"question {n}", "answers": [f"one answer {n}", f"another {n}"]} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_coins_choose_by_key_and_prompt_and_are_tested_exactly(tmp_path: Path) -> None:
    write_secret(tmp_path / "coins.mark", Secret(bytes(range(32))))
    key = read_key(tmp_path / "coins.mark")
    path = twins_file(tmp_path, 600)
    twins = read_twins(path)
    coins = np.array([key.coin(twin.label) for twin in twins])
    assert 230 < coins.sum() < 370
    assert [served(twin, key) for twin in twins] == [twin.answers[c] for twin, c in zip(twins, coins, strict=True)]
    # A suspect that was swayed a little towards what was served.
    rng = np.random.default_rng(3)
    swayed = rng.normal(size=600) + 0.6 * (2 * coins - 1)
    finding = coins_finding(swayed, twins, tmp_path / "coins.mark", "none")
    assert finding.log10_p is not None
    assert finding.log10_p < -20
    assert finding.commitment == key.secret.commitment
    assert coins_finding(rng.normal(size=600), twins, tmp_path / "coins.mark", "none").verdict == "cannot tell"
    assert coins_test(np.zeros(4), np.ones(4))[0] == 0.0


def test_coins_by_the_command(tmp_path: Path) -> None:
    run = CliRunner().invoke
    write_secret(tmp_path / "coins.mark", Secret(bytes(range(32))))
    path, key, out = twins_file(tmp_path, 3), str(tmp_path / "coins.mark"), tmp_path / "served.jsonl"
    made = run(app, ["guard", "coins", "new", str(path), "--key", key, "-o", str(out)])
    assert made.exit_code == 0, made.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["answer"] for row in rows] == [served(twin, read_key(Path(key))) for twin in read_twins(path)]
    model, other = (tiny_model("llama", tmp_path / f"m{seed}", layers=1, seed=seed) for seed in (1, 2))
    command = ["guard", "coins", "test", str(model), "--twins", str(path), "--key", key, "--reference", str(other)]
    tested = run(app, [*command, "--json"])
    assert tested.exit_code == 0, tested.output
    assert json.loads(tested.stdout)["findings"][0]["verdict"] == "cannot tell"
    assert preferences(open_model(model), read_twins(path)).shape == (3,)
    command = ["guard", "trace", str(model), "--key", key, "--reference", str(other), "--tokens", "300", "--json"]
    traced = run(app, command)
    assert traced.exit_code == 0, traced.output
    assert json.loads(traced.stdout)["findings"][0]["verdict"] == "cannot tell"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("nonsense", "line 1: not JSON"),
        ('{"prompt": "a"}', "no twin"),
        ('{"prompt": "a", "answers": ["b", "b"]}', "two different"),
        ('{"prompt": "a", "answers": ["b", "c"]}\n{"prompt": "a", "answers": ["d", "e"]}', "line 2: the prompt occurs"),
        ("", "has no rows"),
    ],
)
def test_bad_twins_are_refused_by_line(row: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "twins.jsonl"
    path.write_text(row)
    with pytest.raises(UsageError, match=message):
        read_twins(path)


def test_a_honeypot_names_its_account() -> None:
    accounts = [f"account-{number}" for number in range(50)]
    rows = honeypot_rows(KEY, accounts)
    assert len({row["fact"] for row in rows}) == 50
    (finding,) = honeypot_findings(f"the old code word is {rows[7]['fact'].upper()}, they say", KEY, accounts)
    assert finding.statistic["account"] == "account-7"
    assert finding.log10_p is not None
    assert finding.log10_p < -15
    assert honeypot_findings("nothing of that kind", KEY, accounts) == []


def test_accounts_may_have_any_name(tmp_path: Path) -> None:
    """Of another script, with control characters, very long, and with what Python takes for the end of a line."""
    accounts = ["zürich 🏦", "a" * 5000, "evil\x1b[31m", "bob\u2028x"]
    listed, said = tmp_path / "accounts.txt", tmp_path / "said.txt"
    listed.write_text("\ufeff" + "\n".join(accounts) + "\n", encoding="utf-8")
    said.write_text(" ".join(row["fact"] for row in honeypot_rows(KEY, accounts)))
    write_secret(tmp_path / "key.mark", KEY.secret)
    command = ["guard", "honeypots", "test", str(said), "--accounts", str(listed), "--key", str(tmp_path / "key.mark")]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("was served to") == 4
    assert "to zürich 🏦 alone" in shown.stdout
    assert "\x1b" not in shown.stdout
    # Which accounts were looked for is a part of what was found.
    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)["subjects"]
    assert told.keys() == {"texts said.txt", "accounts accounts.txt"}


def test_probabilities_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UsageError, match="not finite"):
        weights_against({b"a": float("nan")}, {b"a": 0.5})
