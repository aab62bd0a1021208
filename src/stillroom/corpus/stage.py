"""The stage `corpus`: the recipe's sources, split and packed."""

from __future__ import annotations

from stillroom.core import files
from stillroom.core.progress import Progress
from stillroom.corpus.build import build_corpus
from stillroom.corpus.tally import sentences
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
    dropped = f"; dropped {corpus.ledger['duplicates']:,} duplicates and {corpus.ledger['empty']:,} empty documents"
    progress.say(f"  tokens: {words}{dropped}")
    if corpus.ledger["too_long"]:
        progress.say(
            f"  left out {corpus.ledger['too_long']:,} documents of more than {recipe.corpus.skip_longer_than:,} tokens "
            "(`corpus.skip_longer_than`)"
        )
    for name, words in (("validation", "validation"), ("heldout", "held-out")):
        repeated = corpus.ledger["near_duplicates"][name]
        if repeated["documents"]:
            progress.say(
                f"  {repeated['documents']:,} of {repeated['of']:,} {words} documents are near-duplicates of training "
                "documents (ledger.json names some)"
            )
    for source in corpus.ledger["sources"]:
        for sentence in sentences(source):
            progress.say(f"  {source['name']}: {sentence}")
    for what, count in corpus.ledger["chat_template_left_out"].items():
        progress.say(f"  {what}: {count:,}")
    over = sum(split["targets_over_document_limit"] for split in corpus.ledger["splits"].values())
    if over:
        most = recipe.corpus.max_document_tokens
        progress.say(f"  left {over:,} learned tokens of documents out that had more than {most:,} to measure on")
    for name, documents in corpus.ledger.get("documents_over_default_limit", {}).items():
        words = "held-out" if name == "heldout" else name
        progress.say(
            f"  left {documents:,} {words} documents out: {counts[name]:,} tokens are enough "
            f"beside {counts['train']:,} to train on (`corpus.{name}_tokens` takes more)"
        )
