"""What is kept of each language: bits per byte, agreement, tokens per byte, and retention against the teacher.

*Retention* is the teacher's bits per byte divided by the model's over the same bytes: 1 where it predicts the text as well
as its teacher, 0.5 where it needs twice the bits. It can pass 1. The text is the beginning of the Universal Declaration
of Human Rights, or the user's own. Paragraphs are resampled for intervals.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stillroom.core import files
from stillroom.core.errors import CorpusError, RecipeError
from stillroom.corpus.documents import Document
from stillroom.corpus.sequences import Sequences
from stillroom.corpus.tokens import Encoder
from stillroom.corpus.udhr import samples
from stillroom.evaluation.bench import Bench, kept_states
from stillroom.evaluation.fidelity import Contender, compare
from stillroom.evaluation.heldout import InMemory
from stillroom.evaluation.intervals import TOO_FEW
from stillroom.evaluation.metric import Beside, Metric, Result
from stillroom.evaluation.paired import paired_difference
from stillroom.evaluation.sections import CardResult, Dot, DotChart, Section, Table, Text
from stillroom.evaluation.states import KeptStates
from stillroom.evaluation.tally import Drawing, Tally, behind, headline
from stillroom.evaluation.words import interval, of, percent
from stillroom.recipe.evaluation import EvaluateConfig, LanguagesConfig
from stillroom.recipe.recipe import Recipe
from stillroom.students.languages import tokens_per_byte

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from transformers import PreTrainedTokenizerFast

WEAK = 0.5
"""A language whose whole interval of retention is below this is said to be largely lost."""


def codes_of(bench: Bench) -> list[str]:
    """The languages that are measured, own texts included.

    Raises:
        RecipeError: There is no sample of one.
    """
    return _codes(bench.config, bench.student_languages)


def _codes(wanted: EvaluateConfig, kept: Iterable[str]) -> list[str]:
    """The languages of a recipe; ``kept`` are those of the student's vocabulary. Errors as in :func:`codes_of`."""
    config = wanted.languages
    own = [text.code for text in config.texts]
    if config.codes == "all":
        codes = list(samples())
    elif config.codes == "student":
        bounded = [
            name.split(".")[1]
            for name in (*wanted.floors, *wanted.ceilings)
            if name.startswith("languages.") and name.count(".") > 1
        ]
        codes = ["en", *kept, *bounded]
    else:
        codes = list(config.codes)
    codes = list(dict.fromkeys([*codes, *own]))
    for code in codes:
        if code not in samples() and code not in own:
            raise RecipeError(
                f"`evaluate.languages`: there is no sample of {code!r}.",
                f"Give a text of it under `texts`. Known: {', '.join(sorted(samples()))}.",
            )
    return codes


def require(recipe: Recipe) -> None:
    """Refuse languages without a text, and texts that are missing, empty, or two of one language."""
    _codes(recipe.evaluate, ())
    _own_texts(recipe.evaluate.languages)


def measure_languages(bench: Bench) -> dict[str, Any]:
    """The measure `languages`."""
    texts, own_texts = _texts(bench), {text.code for text in bench.config.languages.texts}
    drawing = Drawing(bench.config.bootstrap_samples, bench.config.confidence, bench.seed)
    found: dict[str, Any] = {}
    total = (1 + len(bench.answering)) * sum(len(text.encode()) for _, text in texts.values())
    with bench.progress.task("languages", total=total, unit="bytes") as task, contextlib.ExitStack() as stack:
        tokenizer = bench.known("teacher").tokenizer
        sequences = {code: sequences_of(text, tokenizer, bench.heldout.length) for code, (_, text) in texts.items()}
        held = {code: InMemory(rows) for code, rows in sequences.items()}
        quiet = type(task)(task.title, 0, "tokens")
        kept: Mapping[str, Mapping[str, KeptStates]] = {}
        if bench.device.type == "cpu":
            kept = stack.enter_context(kept_states(bench, bench.answering, held, quiet))
            task.advance(total - sum(len(text.encode()) for _, text in texts.values()))
        for code, (name, text) in texts.items():
            own = Tally({"all": 1}, len(sequences[code].document_sources))
            models = {other: kept[other][code] if kept else bench.load(other).model for other in bench.answering}
            contenders = [
                Contender(other, models[other], bench.known(other).vocabulary, Tally({"all": 1}, own.groups))
                for other in bench.answering[1:]
            ]
            paragraphs = compare(models["teacher"], own, contenders, held[code], np.zeros(0), quiet)
            tallies = {"teacher": own} | {contender.name: contender.tally for contender in contenders}
            found[code] = {
                "name": name,
                "own_text": code in own_texts,
                "bytes": len(text.encode()),
                "paragraphs": paragraphs,
                "tokens_per_byte": {
                    other: tokens_per_byte(bench.known(other).tokenizer, text) for other in ("teacher", "student")
                },
                "models": {other: headline(tally, drawing) for other, tally in tallies.items()},
                "retention": {other: retention(own, tally, drawing) for other, tally in tallies.items()},
            }
            if "baseline" in tallies:
                found[code]["student_minus_baseline"] = _gain(tallies, drawing)
            task.advance(len(text.encode()))
    bounds = {}
    for code, entry in found.items():
        bounds[f"{code}.retention"] = [
            entry["retention"]["student"]["value"],
            *(entry["retention"]["student"]["interval"] or (None, None)),
        ]
        for measure in ("top1_agreement", "bits_per_byte", "kl_to_teacher"):
            model = entry["models"]["student"]
            bounds[f"{code}.{measure}"] = [model[measure], *(model[f"{measure}_interval"] or (None, None))]
    return {
        "languages": found,
        "interval": f"{percent(drawing.confidence)} intervals over paragraphs (Student's, by effective paragraphs)",
        "bounds": bounds,
    }


def retention(teacher: Tally, model: Tally, drawing: Drawing) -> dict[str, Any]:
    """Teacher's bits per byte over the model's, on the same bytes."""
    estimate = drawing.estimate(teacher.of("nats"), model.of("nats"))
    value = estimate.value if estimate.documents else None
    return {"value": value, "interval": estimate.interval} | behind(model.of("nats"))


def sequences_of(text: str, tokenizer: PreTrainedTokenizerFast, length: int) -> Sequences:
    """A text in the teacher's ids, in pieces of at most ``length`` tokens; its documents are its paragraphs."""
    tokens = Encoder(tokenizer, add_bos=False, add_eos=False).encode([Document(text)])[0]
    ids, sizes = torch.from_numpy(tokens.ids.astype(np.int64)), tokens.bytes
    ends = np.cumsum([len(line.encode()) + 1 for line in text.split("\n")])
    # A token belongs to the paragraph that its first byte is in.
    owners = np.searchsorted(ends, np.cumsum(sizes) - sizes, side="right").clip(max=len(ends) - 1)
    length = max(2, min(length, len(ids)))
    rows = -(-len(ids) // length)

    def lay(values: ArrayLike, fill: int, dtype: torch.dtype) -> torch.Tensor:
        flat = torch.full((rows * length,), fill, dtype=dtype)
        flat[: len(ids)] = torch.as_tensor(np.asarray(values), dtype=dtype)
        return flat.view(rows, length)

    return Sequences(
        ids=lay(tokens.ids, 0, torch.int64),
        segments=lay(np.zeros(len(ids)), -1, torch.int32),
        loss_mask=lay(np.ones(len(ids)), 0, torch.bool),
        documents=lay(owners, -1, torch.int32),
        token_bytes=lay(sizes, 0, torch.int32),
        document_sources=torch.zeros(len(ends), dtype=torch.int32),
    )


def _texts(bench: Bench) -> dict[str, tuple[str, str]]:
    """Name and text of every language, no longer than asked, ended at a line's end where there is one."""
    config = bench.config.languages
    own = _own_texts(config)
    found = {}
    for code in codes_of(bench):
        name, text = own.get(code) or samples()[code]
        if len(text.encode()) > config.bytes:
            text = text.encode()[: config.bytes].decode(errors="ignore")
            text = text[: text.rindex("\n")] if "\n" in text[len(text) // 2 :] else text
        found[code] = (name, text)
    return found


def _own_texts(config: LanguagesConfig) -> dict[str, tuple[str, str]]:
    """Name and text of the user's own texts, whole.

    Raises:
        CorpusError: One is no text, or has no words.
        RecipeError: One is missing, or two are of one language.
    """
    own: dict[str, tuple[str, str]] = {}
    for entry in config.texts:
        if entry.code in own:
            raise RecipeError(
                f"`evaluate.languages.texts`: two texts have the code `{entry.code}`; one would not be measured.",
                "Give each a code of its own, such as `de_law`, or put them into one file.",
            )
        try:
            text = entry.path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise RecipeError(f"`evaluate.languages.texts`: {entry.path} is missing.", "Check the path.") from None
        except UnicodeDecodeError as error:
            raise CorpusError(f"{entry.path}: not UTF-8 at byte {error.start}.", "Save the file as UTF-8.") from None
        if not text.encode()[: config.bytes].decode(errors="ignore").strip():
            raise CorpusError(
                f"`evaluate.languages`: the text of {entry.code!r} is empty.", "Give a text with words in it."
            )
        own[entry.code] = (entry.code, text)
    return own


def _gain(tallies: dict[str, Tally], drawing: Drawing) -> dict[str, Any]:
    """Bits a byte of the student minus those of the baseline, paired by paragraph."""
    first, second = tallies["student"], tallies["baseline"]
    test = paired_difference(
        first.of("nats") / np.log(2),
        second.of("nats") / np.log(2),
        first.of("text_bytes"),
        drawing.confidence,
        less=True,
    )
    bounds = None if test["low"] is None else [test["low"], test["high"]]
    return {"bits_per_byte": test["value"], "bits_per_byte_interval": bounds, "paired": test}


def extra_inputs(bench: Bench) -> dict[str, Any]:
    """The languages, and the content of the user's own texts."""
    texts = [files.digest_file(text.path) for text in bench.config.languages.texts if text.path.is_file()]
    return {"codes": codes_of(bench), "texts": texts}


def weaknesses(result: Result) -> list[str]:
    """Languages that are largely lost."""
    found = []
    for entry in result["languages"].values():
        kept = entry["retention"]["student"]
        # A text of one paragraph has no interval; its value alone does not call a language lost.
        if kept["interval"] and kept["interval"][1] < WEAK:
            found.append(
                f"{entry['name']} is largely lost: retention {percent(kept['value'])} "
                f"({percent(kept['interval'][0])} to {percent(kept['interval'][1])})."
            )
    return found


def card(result: Result) -> list[CardResult]:
    """Retention of each language."""
    return [
        CardResult(
            f"{entry['name']}, {'a text of our own' if entry.get('own_text') else 'Universal Declaration of Human Rights'}",
            f"{'own-text' if entry.get('own_text') else 'udhr'}-{code}",
            "retention",
            "teacher's bits per byte over the student's",
            entry["retention"]["student"]["value"],
            language=code if len(code) == 2 else None,
        )
        for code, entry in result["languages"].items()
    ]


def beside(result: Result, key: str) -> Beside:
    """The same number of the same language."""
    code, _, name = key.rpartition(".")
    entry = result["languages"][code]
    if name == "retention":
        return Beside(*(entry["retention"].get(model, {}).get("value") for model in ("teacher", "baseline")))
    return Beside(*(entry["models"].get(model, {}).get(name) for model in ("teacher", "baseline")))


def sections(result: Result) -> list[Section]:
    """Retention by language, least first."""
    entries = sorted(result["languages"].items(), key=lambda item: float(item[1]["retention"]["student"]["value"] or 0))
    models = [name for name in ("student", "baseline") if name in entries[0][1]["retention"]]
    rows = [
        Dot(f"{entry['name']} ({code})", [_triple(entry["retention"][name]) for name in models])
        for code, entry in entries
        if all(entry["retention"][name]["value"] is not None for name in models)
    ]
    return [
        Section(
            "languages",
            "Languages",
            [
                DotChart(
                    rows,
                    models,
                    "Retention by language",
                    "teacher's bits per byte ÷ the model's",
                    caption="Retention: the teacher's bits per byte divided by the model's, on the same text. 1 (dashed) keeps "
                    "all; strokes are intervals.",
                    at_one=True,
                ),
                Text(
                    "Retention is the teacher's bits per byte divided by the student's, on the same text. "
                    f"{result['interval']}.",
                    page=False,
                ),
                _table(entries),
                Text(
                    "The beginning of the Universal Declaration of Human Rights, or the user's own text. "
                    f"{result['interval']}.",
                    note=True,
                    card=False,
                ),
            ],
        )
    ]


def _table(entries: list[tuple[str, dict[str, Any]]]) -> Table:
    head = [
        "language",
        "retention",
        "bits per byte",
        "teacher's bits",
        "same next token",
        "tokens per byte",
        "teacher's",
    ]
    return Table(
        head,
        [
            [
                f"{entry['name']} ({code})",
                _retained(entry["retention"]["student"]),
                of(entry["models"]["student"], "bits_per_byte"),
                of(entry["models"]["teacher"], "bits_per_byte"),
                of(entry["models"]["student"], "top1_agreement", 1, 100, " %"),
                f"{entry['tokens_per_byte']['student']:.3f}",
                f"{entry['tokens_per_byte']['teacher']:.3f}",
            ]
            for code, entry in entries
        ],
    )


def _retained(entry: dict[str, Any]) -> str:
    """Retention with its interval, and whether the text is enough to tell."""
    words = interval(entry["value"], entry["interval"])
    return words if entry.get("enough", True) else f"{words} ({TOO_FEW})"


def _triple(entry: dict[str, Any]) -> tuple[float, float, float]:
    low, high = entry["interval"] or (entry["value"], entry["value"])
    return entry["value"], low, high


METRIC = Metric(
    name="languages",
    function=measure_languages,
    what="what is kept of each language",
    settings=("languages",),
    order=20,
    require=require,
    extra_inputs=extra_inputs,
    numbers=("*.retention", "*.top1_agreement", "*.bits_per_byte", "*.kl_to_teacher"),
    sections=sections,
    weaknesses=weaknesses,
    card=card,
    beside=beside,
)
