"""Messages of chats as people write them, to the one form that chat templates take.

Read are OpenAI's messages (``tool_calls``, results of tools, ``reasoning_content``, ``weight``, contents in parts, the older
``function_call``) and ShareGPT's (``from`` and ``value``). What is not understood is refused by name; whether a chat template
renders what is kept here is found out when it is rendered (:mod:`stillroom.corpus.chat`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from stillroom.core.errors import CorpusError
from stillroom.core.strict_json import Twice, once_each
from stillroom.corpus.documents import THOUGHTS, clean, kind_of, whole_text
from stillroom.corpus.tally import Tally

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "model", "bot", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "system": "system",
    "function_call": "assistant",
}
"""Who wrote a ShareGPT message, and the role that it is."""
MEDIA = ("image", "images", "image_url", "audio", "audios", "video", "videos", "file", "files")
"""Keys and kinds of parts that hold something else than text."""
SWITCHES = ("weight", "train", "trainable", "loss")
"""Keys that say whether a message is learned."""
EXAMPLE = 'A message looks like {"role": "user", "content": "…"}.'

Message = Mapping[str, Any]


def messages_of(
    value: Any, where: str, key: str, tally: Tally | None = None, ignore: Collection[str] = ()
) -> tuple[Message, ...]:
    """A chat's messages.

    Args:
        value: A list of messages, such a list as JSON text, or a mapping of equally long lists.
        where: File and line.
        key: The row's key that holds it.
        tally: Counts what is not used.
        ignore: Keys of messages that the recipe leaves out.

    Raises:
        CorpusError: Something is not as messages are; names the place and the part.
    """
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        value = parsed(value, where, key)
    if isinstance(value, Mapping) and value and all(isinstance(part, list) for part in value.values()):
        lengths = {len(part) for part in value.values()}
        if len(lengths) == 1:
            value = [dict(zip(value, parts, strict=True)) for parts in zip(*value.values(), strict=True)]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise CorpusError(f"{where}: `{key}` holds {kind_of(value)}, not a list of messages.", EXAMPLE)
    require_entries(value, where, key)
    return tuple(_message(message, where, tally, ignore) for message in value)


def require_entries(entries: Sequence[Any], where: str, key: str) -> None:
    """Check that each entry of a list of messages is a mapping.

    Raises:
        CorpusError: One is not; names it.
    """
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, Mapping):
            raise CorpusError(f"{where}: entry {number} of `{key}` is {kind_of(entry)}, not a message.", EXAMPLE)


def tools_of(value: Any, where: str, key: str = "tools") -> tuple[Mapping[str, Any], ...]:
    """The tools of a chat as chat templates take them: ``{"type": "function", "function": {"name": …, …}}``.

    Args:
        value: A list of tools, with or without ``type`` and ``function`` around each, or such a list as JSON text.
        where: File and line.
        key: The row's key that holds it.

    Raises:
        CorpusError: It is no list of functions.
    """
    if isinstance(value, str):
        value = parsed(value, where, key) if value.strip() else []
    if not isinstance(value, Sequence) or not all(isinstance(tool, Mapping) for tool in value):
        raise CorpusError(
            f"{where}: `{key}` holds {kind_of(value)}, not a list of tools.",
            'A tool looks like {"type": "function", "function": {"name": "…", "parameters": {…}}}.',
        )
    found = []
    for tool in value:
        if isinstance(tool.get("function"), Mapping) and tool.get("type", "function") == "function":
            whole = dict(tool) | {"type": "function"}
        elif isinstance(tool.get("name"), str) and tool.get("type", "function") == "function":
            whole = {"type": "function", "function": {name: part for name, part in tool.items() if name != "type"}}
        else:
            raise CorpusError(
                f"{where}: `{key}` has an entry that is no function: {', '.join(map(str, tool)) or 'nothing'}.",
                'A tool looks like {"type": "function", "function": {"name": "…", "parameters": {…}}}.',
            )
        if not isinstance(whole["function"].get("name"), str):
            raise CorpusError(f"{where}: a function of `{key}` has no `name`.", "Give each tool a name.")
        found.append(plain(whole, where, key))
    return tuple(found)


def text_of_content(
    content: Any, where: str, role: str, tally: Tally | None = None, ignore: Collection[str] = ()
) -> str:
    """The words of a content: text, or a list of text parts, which are joined by line ends.

    Args:
        content: A message's content.
        where: File and line.
        role: Whose message it is.
        tally: Counts what is not used.
        ignore: Keys of parts that the recipe leaves out.

    Raises:
        CorpusError: It holds something else, such as an image.
    """
    if isinstance(content, str):
        return clean(content, where, tally)
    if not isinstance(content, list):
        raise CorpusError(
            f"{where}: the {role}'s message has {kind_of(content)} as its `content`.", "Give the words as one text."
        )
    words = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        text = part.get("text") if isinstance(part, Mapping) else part
        if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
            what = f"a part of the type `{kind}`" if kind != "text" else f"{kind_of(text)} as a part's text"
            raise CorpusError(
                f"{where}: the {role}'s content has {what}; only text is learned.",
                "Leave this row out, or leave only its text parts.",
            )
        if isinstance(part, Mapping):
            _count_beside_text(part, where, role, tally, ignore)
        words.append(clean(text, where, tally))
    if tally is not None and len(words) > 1:
        tally.notes["contents of several text parts joined by line ends"] += 1
    return "\n".join(words)


def _count_beside_text(
    part: Mapping[str, Any], where: str, role: str, tally: Tally | None, ignore: Collection[str]
) -> None:
    """Count what a text part of a content has besides its text; media are refused."""
    beside = [key for key in part if key not in ("type", "text") and part[key] not in (None, "", [], {})]
    medium = next((key for key in beside if key in MEDIA and key not in ignore), None)
    if medium is not None:
        raise CorpusError(
            f"{where}: a text part of the {role}'s content has `{medium}`; only text is learned.",
            f"Leave this row out of the file, or leave the key out on purpose: `ignore: [{medium}]`.",
        )
    if tally is not None:
        tally.unused.update(f"messages.content.{key}" for key in beside)


def _message(message: Message, where: str, tally: Tally | None, ignore: Collection[str]) -> Message:
    given = {str(key): value for key, value in message.items() if value is not None and key not in ignore}
    if tally is not None:
        tally.unused.update(f"messages.{key}" for key in message if key in ignore and message[key] is not None)
    if "role" not in given and "from" in given and ("value" in message or "content" in message):
        given = _sharegpt(given, where)
    if given.get("tool_calls") and given.get("function_call"):
        raise _called_twice(where)
    calls = given.get("tool_calls") or given.get("function_call")
    speaks = calls or any(given.get(key) for key in THOUGHTS)
    if "role" not in given or not ("content" in given or "content" in message or speaks):
        keys = ", ".join(f"`{key}`" for key in message) or "nothing"
        raise CorpusError(f"{where}: a message has {keys} where `role` and `content` are needed.", EXAMPLE)
    role = "tool" if given["role"] == "function" else given["role"]
    if role not in ROLES:
        raise CorpusError(f"{where}: a message has the role {role!r}.", f"Roles are: {', '.join(ROLES)}.")
    content = given.get("content", "" if role == "assistant" and speaks else None)
    found: dict[str, Any] = {"role": role, "content": text_of_content(content, where, role, tally, ignore)}
    if calls:
        if role != "assistant":
            raise CorpusError(f"{where}: the {role}'s message has `tool_calls`.", "Only the assistant calls tools.")
        old = not given.get("tool_calls")
        found["tool_calls"] = _calls([calls] if old else calls, where, tally)
    if not _learned(given, role, where):
        found["train"] = False
    for key, value in given.items():
        if key in ("role", "content", "tool_calls", "function_call", *SWITCHES) or value in ("", [], {}):
            continue
        if key in MEDIA:
            raise CorpusError(
                f"{where}: the {role}'s message has `{key}`; only text is learned.", "Leave this row out of the file."
            )
        if key in THOUGHTS or key in ("name", "tool_call_id"):
            if not isinstance(value, str):
                raise CorpusError(f"{where}: the {role}'s `{key}` is {kind_of(value)}, not text.", "Write it as text.")
            if key in THOUGHTS and role != "assistant":
                raise CorpusError(f"{where}: the {role}'s message has `{key}`.", "Only the assistant thinks.")
            found[key] = clean(value, where, tally)
        else:
            found[whole_text(key, where)] = plain(value, where, key)
    return _with_one_thought(found, where)


def _with_one_thought(message: dict[str, Any], where: str) -> dict[str, Any]:
    """The message, if all keys of its thought hold the same words: a chat template reads one of them."""
    filled = [key for key in THOUGHTS if str(message.get(key, "")).strip()]
    for other in filled[1:]:
        if message[other].strip() != message[filled[0]].strip():
            raise CorpusError(
                f"{where}: the assistant's message has `{filled[0]}` and `{other}` with different words; only one can be "
                "its reasoning.",
                f"Leave one of them out: `ignore: [{other}]`.",
            )
    return {key: value for key, value in message.items() if not filled or key not in THOUGHTS or key in filled}


def _called_twice(where: str) -> CorpusError:
    return CorpusError(
        f"{where}: the assistant's message has calls in two forms, `tool_calls` and `function_call`.",
        "Write all of its calls as `tool_calls`, or leave one form out: `ignore: [function_call]`.",
    )


def _sharegpt(given: dict[str, Any], where: str) -> dict[str, Any]:
    speaker = given.pop("from")
    value = given.pop("value", None)
    if not isinstance(speaker, str) or speaker not in SHAREGPT:
        raise CorpusError(
            f"{where}: a message is from {speaker!r}.", f"Speakers are: {', '.join(SHAREGPT)}. Write one of them."
        )
    given["role"] = SHAREGPT[speaker]
    if speaker == "function_call":
        if given.get("tool_calls") or given.get("function_call"):
            raise _called_twice(where)
        given["tool_calls"] = value if isinstance(value, list) else [value]
    elif value is not None:
        if given.get("content") not in (None, "", [], value):
            raise CorpusError(
                f"{where}: a message has `value` and `content` with different words; only one can be what was said.",
                "Leave one of them out; where `value` is right: `ignore: [content]`.",
            )
        given["content"] = value
    return given


def _learned(given: Message, role: str, where: str) -> bool:
    """Whether a message is to be learned as far as it says so itself."""
    learned = True
    for key in SWITCHES:
        if key in given:
            if given[key] not in (0, 1):
                raise CorpusError(
                    f"{where}: the {role}'s message has the `{key}` {given[key]!r}.",
                    "A message is learned (1 or true) or not (0 or false): write one of these.",
                )
            if given[key] and role != "assistant":
                raise CorpusError(
                    f"{where}: the {role}'s message is to be learned (`{key}`).",
                    f"Only the assistant's words are learned: leave `{key}` out there.",
                )
            learned = learned and bool(given[key])
    return learned or role != "assistant"


def _calls(calls: Any, where: str, tally: Tally | None) -> list[dict[str, Any]]:
    """Calls of tools with their arguments as a mapping, which is how chat templates take them."""
    if isinstance(calls, str):
        calls = parsed(calls, where, "tool_calls")
    found = []
    for entry in calls if isinstance(calls, Sequence) else [calls]:
        call = parsed(entry, where, "tool_calls") if isinstance(entry, str) else entry
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise CorpusError(
                f"{where}: the assistant's `tool_calls` hold {kind_of(call)} without the name of a function.",
                'A call looks like {"type": "function", "function": {"name": "…", "arguments": "{…}"}}.',
            )
        _require_arguments(call, function, where)
        name, arguments = function["name"], function.get("arguments")
        if isinstance(arguments, str):
            arguments = parsed(arguments, where, f"arguments of {name}") if arguments.strip() else {}
        if arguments is not None and not isinstance(arguments, Mapping):
            raise CorpusError(
                f"{where}: the arguments of the call of `{name}` are {kind_of(arguments)}, not a JSON object.",
                'Arguments look like "{\\"city\\": \\"Bonn\\"}".',
            )
        whole: dict[str, Any] = {"type": "function"}
        if call.get("id") is not None and function is not call:
            whole["id"] = str(call["id"])
        whole["function"] = {"name": name, "arguments": plain(dict(arguments or {}), where, f"arguments of {name}")}
        unknown = {key for key in call if call[key] is not None} - {"id", "type", "function", "name", "arguments"}
        if tally is not None:
            tally.unused.update(f"messages.tool_calls.{key}" for key in unknown)
        found.append(whole)
    return found


def _require_arguments(call: Mapping[str, Any], function: Mapping[str, Any], where: str) -> None:
    """Check that a call gives its function nothing but ``arguments``: what is under another key would be lost."""
    known = {"name", "arguments"} if function is not call else {"name", "arguments", "id", "type", "index"}
    unknown = [key for key in function if key not in known and function[key] not in (None, "", [], {})]
    if function is not call:
        beside = ("name", "arguments", "parameters", "input")
        unknown += [key for key in beside if call.get(key) not in (None, "", [], {}, function.get(key))]
    if unknown:
        raise CorpusError(
            f"{where}: the call of `{function['name']}` has `{unknown[0]}`, which is not read.",
            "What a call gives its function is under `arguments`, beside its `name`: write it there, or take the key out.",
        )


def parsed(text: str, where: str, key: str) -> Any:
    """A value that is written as JSON text.

    Raises:
        CorpusError: It is not JSON, or an object in it holds a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=once_each)
    except Twice as error:
        raise CorpusError(
            f"{where}: in the JSON text of `{key}` the key {str(error)[:80]!r} is there twice.", "Write it once."
        ) from None
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error).split(";")[0]
        raise CorpusError(
            f"{where}: `{key}` holds text that is not JSON: {reason}.", "Write it as valid JSON."
        ) from None


def plain(value: Any, where: str, key: str) -> Any:
    """A value of JSON's kinds with whole characters only.

    Raises:
        CorpusError: It holds something that JSON cannot.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError):
        raise CorpusError(
            f"{where}: `{key}` holds a value that JSON cannot hold.", f"Leave it out: `ignore: [{key}]`."
        ) from None
    return json.loads(text)
