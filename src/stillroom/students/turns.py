"""Whether a student with its own tokenizer can read the chats that a teacher is to write."""

from __future__ import annotations

import torch

from stillroom.corpus.chat import ChatTemplate
from stillroom.models.load import load_tokenizer, model_folder
from stillroom.models.tokenizer import open_tokenizer
from stillroom.recipe.recipe import Recipe
from stillroom.signals.alignment import Alignment

CHAT = ({"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "This."})


def require_turns(recipe: Recipe) -> None:
    """Refuse, before anything is written, chats whose turns a student's tokenizer has no tokens for.

    Raises:
        VocabularyMismatch: It has none; names the token.
        CorpusError: The teacher has no chat template.
    """
    student, write = recipe.student_with_own_tokenizer, recipe.write
    if student is None or write is None or set(write.forms) <= {"rephrase"}:
        return
    teacher = load_tokenizer(recipe.teacher)
    mine = open_tokenizer(model_folder(student.name, student.revision))
    text, _ = ChatTemplate(teacher).render(CHAT, "`write.forms`")
    ids = teacher(text, add_special_tokens=False).input_ids
    Alignment.of(teacher, mine, len(teacher), len(mine)).tokenize(torch.tensor(ids))
