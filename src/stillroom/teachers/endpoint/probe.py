"""What is asked of an endpoint before anything is paid for, and the fingerprint by which its model is known again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from stillroom.core.errors import TeacherError
from stillroom.signals.signal import CoarseSignal
from stillroom.teachers.endpoint.servers import Server

TEXTS = (
    "The quick brown fox jumps over the lazy dog, and then it sleeps until noon.",
    "def area(r: float) -> float:\n    return 3.14159 * r ** 2  # of a circle\n",
    "Straße, naïve café, 漢字かな交じり文, Привет, 🙂 and 👩‍🔬.",
)
"""ASCII, code, and other scripts: what tells tokenizers apart."""
SCORED = 64
"""Tokens of the text that is scored twice."""
NOISE_FACTOR, LEAST_TOLERANCE = 5.0, 0.05
"""Answers are the same model's where log-probabilities differ on average by less than one of these: times the noise of two
answers in a row, and nats."""
MOST_NOISE = 1.0
"""Nats by which answers to the same request may differ on average."""


@dataclass(frozen=True)
class Fingerprint:
    """What a model answers about a fixed text.

    Attributes:
        model: The name that was asked for.
        text: The ids of the text.
        ids: Listed ids, [N][K].
        logprobs: Their log-probabilities, [N][K].
        noise: Mean difference of two answers in a row, nats.
    """

    model: str
    text: list[int]
    ids: list[list[int]]
    logprobs: list[list[float]]
    noise: float

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"format": 1, **vars(self)}

    @classmethod
    def from_dict(cls, value: Any) -> Fingerprint | None:
        """From JSON; None where it is none."""
        try:
            found = cls(
                str(value["model"]),
                [int(token) for token in value["text"]],
                [[int(token) for token in row] for row in value["ids"]],
                [[float(number) for number in row] for row in value["logprobs"]],
                float(value["noise"]),
            )
        except (KeyError, TypeError, ValueError):
            return None
        numbers = [found.noise, *(number for row in found.logprobs for number in row)]
        # A noise that no probe lets pass would let any model pass.
        whole = all(map(math.isfinite, numbers)) and 0 <= found.noise <= MOST_NOISE
        return found if value.get("format") == 1 and len(found.ids) == len(found.logprobs) and whole else None

    @property
    def signal(self) -> CoarseSignal:
        """The listed ids."""
        logprobs = torch.tensor(self.logprobs)
        return CoarseSignal(torch.tensor(self.ids), logprobs, (1 - logprobs.exp().sum(1)).clamp_min(0))

    @property
    def tolerance(self) -> float:
        """Mean difference, nats, up to which an answer is the same model's."""
        return max(LEAST_TOLERANCE, NOISE_FACTOR * self.noise)


@dataclass(frozen=True)
class Probe:
    """What a probe found.

    Attributes:
        kind: The kind of server.
        tokenizer_checked: Whether the server told its tokens, and they were the recipe's.
        top: Ids that it lists per position.
        missing_mass: Mean probability of all ids that it does not list.
        deterministic: Whether two answers were the same to the last digit.
        fingerprint: By which the model is known again.
        server: What the server says of itself.
    """

    kind: str
    tokenizer_checked: bool
    top: int
    missing_mass: float
    deterministic: bool
    fingerprint: Fingerprint
    server: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """As JSON, without the fingerprint's numbers."""
        return {
            "server": self.kind,
            "model": self.fingerprint.model,
            "tokenizer_checked": self.tokenizer_checked,
            "top": self.top,
            "missing_mass": round(self.missing_mass, 5),
            "deterministic": self.deterministic,
            "noise": self.fingerprint.noise,
            "tolerance": self.fingerprint.tolerance,
            "about": self.server,
        }


def probe(server: Server) -> Probe:
    """Find out whether a server's answers are what they have to be.

    Raises:
        TeacherError: They are not; says how.
    """
    told = require_tokenizer(server)
    text = probe_text(server)
    first, second = server.score(text, "probe"), server.score(text, "probe")
    noise = difference(first, second)
    same = torch.equal(first.ids, second.ids) and torch.equal(first.logprobs, second.logprobs)
    print_ = Fingerprint(server.model, text, first.ids.tolist(), first.logprobs.tolist(), noise)
    if not noise <= MOST_NOISE:
        raise server.fault(
            f"it answers the same request differently: log-probabilities differ by {noise:.2f} nats on average",
            "Several models may answer behind one name: pin one.",
        )
    return Probe(server.kind, told, first.ids.shape[1], float(first.rest.mean()), same, print_, _about(server))


def probe_text(server: Server) -> list[int]:
    """The fixed text in the recipe's tokens."""
    ids = server.tokenizer(" ".join(TEXTS), add_special_tokens=False)["input_ids"]
    return [int(token) for token in ids[:SCORED]]


def require_tokenizer(server: Server) -> bool:
    """Refuse a server with another tokenizer than the recipe's; returns whether it tells its tokens."""
    told = False
    for text in TEXTS:
        theirs = server.tokens(text)
        if theirs is None:
            continue
        told = True
        ours = [int(token) for token in server.tokenizer(text, add_special_tokens=False)["input_ids"]]
        server.require_ids(theirs, ours, f"of {text[:20]!r}, token")
    return told


def difference(one: CoarseSignal, other: CoarseSignal) -> float:
    """Mean difference of log-probabilities over ids that both list, nats; infinite where hardly any are, or none is probable.

    An id at the end of a list may be missing in the other.
    """
    if one.ids.shape[0] != other.ids.shape[0]:
        return float("inf")
    same = one.ids[:, :, None] == other.ids[:, None, :]
    if float(same.any(2).float().mean()) < 0.5:
        return float("inf")
    gaps = (one.logprobs[:, :, None] - other.logprobs[:, None, :]).abs()
    # What is rare differs most and matters least: each id counts as much as it is probable.
    weight = torch.where(same, one.logprobs.exp()[:, :, None], 0.0)
    mean = float((weight * torch.where(same, gaps, 0.0)).sum() / weight.sum())
    return mean if math.isfinite(mean) else math.inf


def require_same(server: Server, known: Fingerprint) -> None:
    """Refuse a server whose model is not the one that a fingerprint is of.

    Raises:
        TeacherError: It is another, or none that can be asked.
    """
    if probe_text(server) != known.text:
        raise TeacherError(
            f"{server.where}: the kept fingerprint is of another tokenizer.", "Name another folder as `capture.path`."
        )
    now = server.score(known.text, "fingerprint")
    gap = difference(known.signal, now)
    if not gap <= known.tolerance:
        raise server.fault(
            f"another model answers than the one that was captured before: log-probabilities differ by "
            f"{'more than can be compared' if gap == float('inf') else f'{gap:.3f} nats'} on average, and "
            f"{known.tolerance:.3f} are allowed",
            "What was received since the last check is thrown away. Serve the same model again, or name another folder as "
            "`capture.path`.",
        )


def _about(server: Server) -> dict[str, str]:
    """Version and model path, where the server tells."""
    found: dict[str, str] = {}
    for path, keys in (("/props", ("build_info", "model_path", "model_alias")), ("/version", ("version",))):
        value = server.client.get(path)
        if isinstance(value, dict):
            for key in keys:
                if isinstance(value.get(key), str):
                    # A path on somebody's machine is no one's business: its last part says which file it is.
                    found[key] = value[key].replace("\\", "/").rsplit("/", 1)[-1][:120]
    return found
