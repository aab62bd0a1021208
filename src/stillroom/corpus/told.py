"""What a data manifest has to tell a user, in sentences: the stage `corpus` says them, and so does the plan."""

from __future__ import annotations

from typing import Any

from stillroom.corpus.tally import sentences
from stillroom.recipe.corpus import CorpusConfig


def dropped(ledger: dict[str, Any]) -> str:
    """How many documents were duplicates, and how many empty."""
    return f"dropped {ledger['duplicates']:,} duplicates and {ledger['empty']:,} empty documents"


def told(ledger: dict[str, Any], config: CorpusConfig) -> list[str]:
    """What was passed over, changed, counted and left out of the sources; nothing where all was taken as it is.

    Args:
        ledger: The data manifest; one of an earlier version lacks some counts.
        config: The recipe's section.
    """
    found = []
    if too_long := ledger.get("too_long"):
        found.append(
            f"left out {too_long:,} documents of more than {config.skip_longer_than:,} tokens (`corpus.skip_longer_than`)"
        )
    repeated = ledger.get("near_duplicates", {})
    found += [
        f"{repeated[name]['documents']:,} of {repeated[name]['of']:,} {_words(name)} documents are near-duplicates of training "
        "documents (ledger.json names some)"
        for name in ("validation", "heldout")
        if name in repeated and repeated[name]["documents"]
    ]
    found += [
        f"{source['name']}: nothing of its {source['documents']:,} documents is in the training text"
        for source in ledger["sources"]
        if not source["tokens"]["train"]
    ]
    found += [f"{source['name']}: {sentence}" for source in ledger["sources"] for sentence in sentences(source)]
    found += [f"{what}: {count:,}" for what, count in ledger.get("chat_template_left_out", {}).items()]
    if over := sum(split.get("targets_over_document_limit", 0) for split in ledger["splits"].values()):
        most = config.max_document_tokens
        found.append(f"left {over:,} learned tokens of documents out that had more than {most:,} to measure on")
    tokens = {name: split["tokens"] for name, split in ledger["splits"].items()}
    found += [
        f"left {documents:,} {_words(name)} documents out: {tokens[name]:,} tokens are enough beside {tokens['train']:,} to "
        f"train on (`corpus.{name}_tokens` takes more)"
        for name, documents in ledger.get("documents_over_default_limit", {}).items()
    ]
    return found


def _words(split: str) -> str:
    return "held-out" if split == "heldout" else split
