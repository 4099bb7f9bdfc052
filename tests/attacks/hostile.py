"""Hostile texts, by what they try; add a line for another one."""

import unicodedata

TEXTS = {
    "clears the screen": "\x1b[2J\x1b[H gone",
    "sets the title": "\x1b]0;owned\x07",
    "hyperlink": "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "asks the terminal": "\x1b[6n\x1bZ",
    "colors by C1": "\x9b31mred\x9b0m",
    "operating system by C1": "\x9d0;owned\x9c",
    "null": "a\0b",
    "bell": "a\a",
    "backspaces": "bad\b\b\bgood",
    "overwrites the line": "FAILED\rFINISHED",
    "another line": "x\nfbp: identical to the bit",
    "vertical tab and form feed": "a\vb\fc",
    "unicode line": "a\u2028b\u2029c\u0085d",
    "right to left": "\u202egnp.exe",
    "isolates": "\u2066a\u2069 \u2067b\u2069",
    "marks of direction": "a\u200e\u200f\u061cb",
    "zero width": "be\u200bst\u2060\ufeff\u00ad",
    "joiners": "be\u200dst",
    "invisible letters": "a\U000e0041\U000e007f",
    "annotations": "\ufff9a\ufffab\ufffb",
    "half a character": "a\ud800b",
    "rich: closes": "better [/b] run",
    "rich: closes all": "[/]",
    "rich: escaped": "\\[/data]",
    "rich: backslash at the end": "a\\",
    "rich: link": "[link=http://evil.example]run[/link]",
    "rich: style": "[bold red on white]run",
    "rich: action": "[@click=app.quit]x[/]",
    "rich: emoji": ":warning: :smile:",
    "html: script": "<script>alert(1)</script>",
    "html: picture": '<img src=x onerror="alert(1)">',
    "html: comment": "<!-- -->  ]]>",
    "html: entity": "&lt;b&gt; &#x3c; &copy;",
    "markdown: link": "[run](javascript:alert(1))",
    "markdown: picture": "![x](http://evil.example/x.png)",
    "markdown: reference": "[x]: http://evil.example",
    "markdown: address": "http://evil.example www.evil.example mailto:a@evil.example",
    "markdown: bare address": "<http://evil.example>",
    "markdown: cells": "a | b || c",
    "markdown: escaped cell": "a \\| b",
    "markdown: code": "`` `a` ``",
    "markdown: emphasis": "**a** _b_ ~~c~~ __d__",
    "markdown: heading": "# a",
    "markdown: rule": "---",
    "mathtext": "$x^2$",
    "mathtext: broken": "$\\frac{$",
    "mathtext: escaped": "\\$a$ \\\\$",
    "hidden from legends": "_nolegend_",
    "formula =": "=cmd|' /C calc'!A0",
    "formula +": "+1+cmd|'x'!A0",
    "formula -": "-1+cmd|'x'!A0",
    "formula @": "@SUM(A1)",
    "formula after a tab": "\t=1",
    "formula after a quote": "'=1",
    "cells of CSV": 'a,b;"c"',
    "percent and braces": "%s %n {0} {x!r}",
    "wide": "漢字" * 60,
    "long": "a" * 20_000,
    "blanks": "   ",
}
"""Texts that a record, a server or a language model may hold."""


def unseen(text: str, visible: str = "\n") -> set[str]:
    """Return the characters of a text that a reader does not see, but for `visible`."""
    invisible = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return {
        character
        for character in text
        if unicodedata.category(character) in invisible and character not in visible
    }
