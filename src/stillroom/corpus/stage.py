"""The stage `corpus`: the recipe's sources, split and packed."""

from __future__ import annotations

from stillroom.core import files
from stillroom.core.progress import Progress
from stillroom.corpus.build import build_corpus
from stillroom.corpus.told import dropped, told
from stillroom.models.load import load_tokenizer
from stillroom.runs.run import Run, Stage
from stillroom.runs.stages import WRITTEN, WRITTEN_RECORD


def run_stage(run: Run, stage: Stage, progress: Progress) -> None:
    """Build the corpus with the teacher's tokenizer."""
    recipe = run.recipe
    progress.say("  loading the teacher's tokenizer")
    tokenizer = load_tokenizer(recipe.teacher)
    written = run.stage("write").path / WRITTEN if recipe.write is not None else None
    corpus = build_corpus(recipe.corpus, tokenizer, recipe.public_seed, progress, scratch=stage.path, written=written)
    if written is not None:
        corpus.ledger["written"] = files.read_json(written.with_name(WRITTEN_RECORD))
    for name, pieces in corpus.pieces.items():
        pieces.save(stage.path / f"{name}.safetensors")
    with files.replacing(stage.path / "tokenizer") as beside:
        tokenizer.save_pretrained(beside)
    files.write_json(stage.path / "ledger.json", corpus.ledger)
    counts = {name: pieces.tokens for name, pieces in corpus.pieces.items()}
    stage.notes.update(
        tokens=counts,
        documents=corpus.ledger["documents"],
        duplicates=corpus.ledger["duplicates"],
        empty=corpus.ledger["empty"],
    )
    words = ", ".join(f"{value:,} {name}" for name, value in counts.items())
    progress.say(f"  tokens: {words}; {dropped(corpus.ledger)}")
    for sentence in told(corpus.ledger, recipe.corpus):
        progress.say(f"  {sentence}")
