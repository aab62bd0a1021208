"""Writes ``recipes/quickstart.jsonl``: short questions about computing, answered by the teacher itself.

    stillroom serve SmolLM2-135M-Instruct.Q4_1.gguf --port 8080 --parallel 8 --context 512
    python -m tools.quickstart_text http://127.0.0.1:8080 recipes/quickstart.jsonl

Every topic of ``tools/quickstart_topics.txt`` is asked about in eight ways, each of which says how long the answer should be.
Without that the teacher writes until it is cut off, and its distribution never teaches a student to come to an end. An answer
is kept if it ends by itself, repeats nothing, names its topic, and is unlike the other answers about it; otherwise it is asked
for twice more, at a higher temperature. The answers, and so the file, depend on the server's arithmetic.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import json
import re
import sys
import urllib.request
from pathlib import Path

TOPICS = Path(__file__).parent / "quickstart_topics.txt"
ASKED = (
    "What is {topic}? Answer in two short sentences.",
    "Explain {topic} in two short sentences.",
    "Give a one-sentence definition of {topic}.",
    "Why is {topic} useful? Answer in one sentence.",
    "In one sentence, what is {topic}?",
    "How does {topic} work? Answer in two short sentences.",
    "Tell me in one sentence why people use {topic}.",
    "What should a beginner know about {topic}? Answer in two short sentences.",
)
TEMPERATURES = (0.2, 0.5, 0.8)
FEWEST, MOST, TOKENS = 8, 75, 110
"""Words of an answer that is kept, and tokens that it may take."""
REPEATED, ALIKE = 4, 0.5
"""Words of a stretch that an answer has once only, and the share of three-word stretches from which on two are alike."""
NOT_TELLING = {"the", "programming", "computer", "python", "science"}


def ask(server: str, question: str, temperature: float, seed: int) -> tuple[str, bool]:
    """The served model's answer, and whether it came to its end."""
    body = {
        "messages": [{"role": "user", "content": question}],
        "temperature": temperature,
        "seed": seed,
        "max_tokens": TOKENS,
    }
    request = urllib.request.Request(
        f"{server}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        choice = json.load(response)["choices"][0]
    return choice["message"]["content"].strip(), choice["finish_reason"] == "stop"


def words_of(text: str) -> list[str]:
    """Words in lower case."""
    return re.findall(r"\w+", text.lower())


def stretches(words: list[str], length: int) -> list[tuple[str, ...]]:
    """All runs of so many words."""
    return [tuple(words[begin : begin + length]) for begin in range(len(words) - length + 1)]


def fault(topic: str, answer: str, ended: bool) -> str:
    """Why an answer is not kept; empty where it is."""
    words = words_of(answer)
    if not ended:
        return "does not end"
    if not FEWEST <= len(words) <= MOST:
        return "too short or too long"
    if len(set(stretches(words, REPEATED))) < len(stretches(words, REPEATED)):
        return "repeats itself"
    if "sentence" in words:
        return "is about the question"
    names = [word for word in words_of(topic) if len(word) > 2 and word not in NOT_TELLING] or words_of(topic)
    return "" if any(name.rstrip("s") in " ".join(words) for name in names) else "does not name its topic"


def answered(server: str, topic: str, form: str) -> tuple[str, str, list[str]]:
    """A question with the first answer that can be kept, empty without one, and what was wrong with those before."""
    question = form.format(topic=topic)
    faults: list[str] = []
    for number, temperature in enumerate(TEMPERATURES, 1):
        answer, ended = ask(server, question, temperature, number)
        if not (wrong := fault(topic, answer, ended)):
            return question, answer, faults
        faults.append(wrong)
    return question, "", faults


def main() -> None:
    """Ask, keep, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="address of a server of the teacher")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    topics = TOPICS.read_text(encoding="utf-8").splitlines()
    jobs = [(topic, form) for topic in topics for form in ASKED]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: answered(arguments.server, *job), jobs))
    faults = collections.Counter(wrong for _, _, wrongs in found for wrong in wrongs)
    seen: dict[str, list[set[tuple[str, ...]]]] = collections.defaultdict(list)
    lines = []
    for (topic, _), (question, answer, _) in zip(jobs, found, strict=True):
        if not answer:
            continue
        mine = set(stretches(words_of(answer), 3))
        if any(len(mine & other) > ALIKE * len(mine | other) for other in seen[topic]):
            faults["like another about its topic"] += 1
            continue
        seen[topic].append(mine)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    arguments.out.write_text("".join(lines), encoding="utf-8")
    sys.stderr.write(f"{len(lines):,} of {len(jobs):,} questions; answers left out: {dict(faults)}\n")


if __name__ == "__main__":
    main()
