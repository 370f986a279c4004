#!/usr/bin/env python3
"""Writes text-commands.jsonl: messages, and how the original server's rules read each.

Run with Python 3.11, whose str.strip() and int() are the rules; the output is the
same at every run:

    python3 vectors/make-text-commands.py > vectors/text-commands.jsonl

Each line is {"message": ..., "command": ...} with a command of "help", "send",
"nowhere", "unknown" or "unreadable"; a "send" has "to", a string of decimal digits
(not every language's numbers hold 64 bits), and "text".
"""

import json
import random
import sys
import unicodedata

U64_MAX = 2**64 - 1
CASES = 2000
SEED = 100_000_000


def command(message):
    """What the original answers, but for the commas of the text, which are kept."""
    if message == "help":
        return {"command": "help"}
    try:
        parts = message.split(",", 2)
        word = parts[0].strip()
        to = int(parts[1].strip())
        text = parts[2]
    except (ValueError, IndexError):
        return {"command": "unreadable"}
    if word != "send":
        return {"command": "unknown"}
    if not 0 <= to <= U64_MAX:
        return {"command": "nowhere"}
    return {"command": "send", "to": str(to), "text": text}


def characters():
    return (chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF)


def digits():
    return [c for c in characters() if unicodedata.decimal(c, None) is not None]


def spaces():
    return [c for c in characters() if c.isspace()]


def near(chars):
    """The characters beside those given, which are none of them."""
    beside = {chr(ord(c) + step) for c in chars for step in (-1, 1) if ord(c) + step >= 0}
    return sorted(beside - set(chars))


def forms():
    """Messages with a part missing, empty, doubled or misspelt."""
    yield from ["", "help", " help", "help ", "HELP", "Help", "help,", "help\n", "help,1,x"]
    yield from ["foo", ",", ",,", ",,,", "send", "send,", "send,,", "send,,x", "send,1"]
    yield from ["send,1,", "send,1,x", "send,1,,", "send,1,a,b,,c", "send,1,help", "send,1, x "]
    yield from ["SEND,1,x", "Send,1,x", "sen,1,x", "send send,1,x", "s end,1,x", ",1,x", " ,1,x"]
    yield from ["foo,1,x", "foo,x,x", "foo,-1,x", "foo,1", f"foo,{U64_MAX + 1},x", "1,send,x"]
    yield from ["send;1;x", "send,1;x", "send 1,x", "send,1\0,x", "send\0,1,x", "send,\0,x"]
    yield from ["send,1,line1\nline2 \U0001f600 \u0628", "send,1,\0", "send,1,\x1c", "\ufeffsend,1,x"]
    yield from ["send,1\n,x", "send\r\n,\r\n1\r\n,\r\nx\r\n", "send,١٢٣,x", "send,１２３,x"]


def ids():
    """Second parts around the borders of what int() reads."""
    for number in [0, 1, 9, 10, 999, 100_000_000, 100_000_001, 2**32, 2**53, 2**53 + 1, 2**63]:
        yield from (str(number), f"+{number}", f"-{number}", f"0{number}", f"000{number}")
    for number in [10**19 - 1, 10**19, U64_MAX - 1, U64_MAX, U64_MAX + 1, 10**20, 10**26 - 1, 2**128]:
        yield from (str(number), f"-{number}", f"0{number}", f"{number:_}", f"{'0' * 40}{number}")
    yield from ["", "+", "-", "++1", "--1", "+-1", "-+1", "+ 1", "- 1", "1+", "1-", "1 2", "1 +"]
    yield from ["_", "_1", "1_", "1_0", "1__0", "+_1", "-_1", "1_+", "1_ 0", "_ 1", "0_0", "-0_0"]
    yield from ["0x1", "0b1", "0o1", "1e3", "1.0", "1.", ".1", "1j", "1L", "1n", "inf", "nan", "None"]
    yield from ["True", "²", "①", "Ⅷ", "一", "½", "٣", "-٣", "+٣", "٣_٣", "1٣", "٣1", "𝟘𝟙", "٣.٣"]
    yield from ["−1", "－1", "＋1", "1＿0", "1,0"]
    for count in (4299, 4300, 4301):
        yield from ("0" * count, "-" + "1" * count)
    yield from ["+" + "0" * 4301, "1_" * 4299 + "1", "0" * 4290 + "100000001", "٣" * 4301]


def odd_characters():
    """Every white space, every decimal digit and their neighbours, in every place."""
    for space in spaces():
        yield from (f"{space}send{space},{space}1{space},{space}x{space}", f"send,1{space}2,x")
        yield from (f"send,+{space}1,x", f"send,{space},x")
    yield from (f"{char}send,1,x" for char in near(spaces()))
    yield from (f"send,1{digit},x" for digit in digits())
    yield from (f"send,{char},x" for char in near(digits()))


def jumbles(rng):
    """Endless messages put together from small parts, most of them nearly right."""
    blank = ["", "", "", "", " ", "\t", "\u00a0", "\x1f", "\u2003", "\u200b", "\0"]
    word = ["send"] * 8 + ["help", "sen", "SEND", "", "s,end"]
    sign = ["", "", "", "", "+", "-", "−"]
    comma = [","] * 12 + ["", ";", ",,", "，"]
    text = ["", "x", "hello", " padded ", "a,b,,c", "\U0001f600", "help", "\n", "send,1,x", "٣"]
    digit = list("0123456789") * 3 + ["٣", "９", "𝟗", "_", "a"]
    while True:
        number = "".join(rng.choices(digit, k=rng.choice([0, 1, 1, 2, 3, 9, 9, 9, 19, 20, 21])))
        id_part = rng.choice(blank) + rng.choice(sign) + number + rng.choice(blank)
        word_part = rng.choice(blank) + rng.choice(word) + rng.choice(blank)
        yield word_part + rng.choice(comma) + id_part + rng.choice(comma) + rng.choice(text)


def messages():
    """At least CASES different messages, the odd ones first."""
    seen = dict.fromkeys(forms())
    seen.update(dict.fromkeys(f"send,{part},x" for part in ids()))
    seen.update(dict.fromkeys(odd_characters()))
    jumble = jumbles(random.Random(SEED))
    while len(seen) < CASES:
        seen[next(jumble)] = None
    return seen


def main():
    if sys.version_info[:2] != (3, 11):
        sys.exit("Python 3.11 is wanted: other versions know other Unicode digits.")
    for message in messages():
        print(json.dumps({"message": message} | command(message)))


if __name__ == "__main__":
    main()
