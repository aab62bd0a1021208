"""Puts prompts to the owner's model, the suspect and the controls, and compares their answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from stillroom.core.errors import UsageError
from stillroom.guard.ask import (
    Asker,
    ask_finding,
    ask_in_batches,
    decide,
    greedy,
    lengths_of,
    over_http,
    require_address,
)
from stillroom.guard.findings import Findings, findings_of, subject_digest
from stillroom.guard.lineage_examine import control_models, independent_models, open_owner
from stillroom.guard.lineage_match import open_model


def ask_all(
    suspect: str,
    owner: Path,
    controls: Path,
    prompts: Sequence[str],
    margin: float | None,
    name: str,
    api_key_fd: int | None,
    say: Callable[[str], None],
) -> tuple[Findings, dict[str, str]]:
    """Compare a suspect with the owner's model and controls.

    The controls and the owner's model are here and cost nothing; they answer all prompts first. The suspect is then asked
    batch by batch, and no more once a result holds.

    Args:
        suspect: An address that ends in ``/v1``, or a path.
        owner: The owner's model.
        controls: A folder of independent models.
        prompts: The prompts, in the order in which they are asked.
        margin: See :func:`stillroom.guard.ask.decide`.
        name: The suspect's name at its address.
        api_key_fd: Descriptor of its API key.
        say: Called with progress.

    Returns:
        The findings, and digests of what was examined.

    Raises:
        UsageError: A model cannot be read or reached, or there are too few controls.
    """
    if suspect.startswith(("http://", "https://")):
        require_address(suspect)
    paths = control_models(controls)
    # Refused before anything is asked where controls are too few, or not controls.
    lengths = np.zeros((len(paths), len(prompts)), np.int64)
    decide(np.zeros(0, np.int64), lengths, np.zeros(len(prompts), np.int64), margin)
    examined = {"your model": owner}
    if not suspect.startswith(("http://", "https://")) and Path(suspect).exists():
        examined["the suspect"] = open_owner(Path(suspect)).model
    independent_models(controls, examined)
    subjects = {f"owner {owner.name}": subject_digest(owner)}
    asker = _asker(suspect, name, api_key_fd, subjects)
    say("your model answers")
    expected = greedy(open_model(owner))(prompts)
    for row, path in enumerate(paths):
        say(f"control {row + 1} of {len(paths)}: {path.name}")
        subjects[f"control {path.name}"] = subject_digest(path)
        lengths[row] = lengths_of(greedy(open_model(path))(prompts), expected)
    say("the suspect answers")
    asked = ask_in_batches(asker, prompts, expected, lengths, margin)
    return findings_of([ask_finding(asked, suspect)]), subjects


def _asker(suspect: str, name: str, api_key_fd: int | None, subjects: dict[str, str]) -> Asker:
    if suspect.startswith(("http://", "https://")):
        key = None
        if api_key_fd is not None:
            try:
                with os.fdopen(os.dup(api_key_fd), encoding="utf-8") as stream:
                    key = stream.readline().strip()
            except (OSError, UnicodeDecodeError):
                raise UsageError(
                    f"The file descriptor {api_key_fd} gives no key.", "Open it: `--api-key-fd 3 3<file`."
                ) from None
        return over_http(suspect, name, key)
    path = Path(suspect)
    if not path.exists():
        raise UsageError(f"{suspect}: there is nothing at this path, and it is no address.", "Check it.")
    model = open_owner(path).model
    subjects[f"suspect {path.name}"] = subject_digest(model)
    return greedy(open_model(model))
