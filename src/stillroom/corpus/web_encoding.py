"""What a web page's encoding is, as browsers read it: the Encoding Standard (WHATWG, encoding.spec.whatwg.org), section 4.2.

Pages that declare ``iso-8859-1`` are in windows-1252, whose bytes 0x80 to 0x9F are quotes and dashes where Latin-1 has control
characters; other labels have wider encodings in the same way.
"""

from __future__ import annotations

import codecs

from stillroom.corpus.inputs import canonical

WIDER = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc_kr": "cp949",
    "shift_jis": "cp932",
    "big5": "big5hkscs",
}
"""By Python's name of a declared encoding, the one that browsers read in its place."""
UNKNOWN_TO_PYTHON = {
    "dos-874": "cp874",
    "windows-874": "cp874",
    "windows-949": "cp949",
    "x-sjis": "cp932",
    "x-gbk": "gb18030",
    "x-x-big5": "big5hkscs",
    "x-user-defined": "cp1252",
    "x-mac-roman": "mac-roman",
    "x-mac-cyrillic": "mac-cyrillic",
    "x-euc-jp": "euc_jp",
    "iso-8859-8-i": "iso8859-8",
    "iso-8859-8-e": "iso8859-8",
    "unicode-1-1-utf-8": "utf-8",
}
"""Labels of the standard that Python has no name for."""
SINGLE_BYTE = frozenset(("cp1252", "cp1254", "cp874"))
"""Of the wider ones those in which a byte from 0x80 to 0x9F that Python does not know is a control character."""


def as_browsers_read(label: str) -> str:
    """The encoding that browsers read where a page, or a recipe for pages, says ``label``; the label where that is it."""
    plain = label.strip().lower()
    plain = plain.removeprefix("x-") if plain.startswith("x-cp125") else plain
    known = UNKNOWN_TO_PYTHON.get(plain) or canonical(plain)
    return label if known is None else WIDER.get(known, plain if known == canonical(label) else known)


def single_byte(data: bytes, encoding: str) -> str:
    """Text of one of :data:`SINGLE_BYTE`.

    Raises:
        UnicodeDecodeError: A byte has no meaning in it.
    """
    each = [bytes([byte]).decode(encoding, "replace") for byte in range(256)]
    table = "".join(
        (chr(byte) if 0x80 <= byte < 0xA0 else "\ufffe") if text == "\ufffd" else text for byte, text in enumerate(each)
    )
    return codecs.charmap_decode(data, "strict", table)[0]
