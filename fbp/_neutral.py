"""Texts from outside, made neutral for the medium that shows them: one function for each medium.

A record, a server, a file's name or a language model can hold any text. Shown as it is, it could
drive a terminal, forge a line of a report, link or format in Markdown, be a formula of a
spreadsheet, or break a picture. Nothing is lost: a character that cannot be shown is written as an
escape, such as ``\\x1b``.
"""

import re
import unicodedata

_LINE_BREAKS = ("\n", "\t")
_JOINERS = "\u200c\u200d"  # belong to the spelling of some languages
_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, formats, halves of characters, separators
_LONGEST_LABEL = 60  # characters of a text in a picture
_END_OF_LABEL = 5  # characters, which tell runs apart

# what Markdown, or GitHub's, gives a meaning within a line
_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
_ADDRESS = re.compile(r"(\w)(://)|\b(mailto|xmpp)(:)|\b(www)(\.)", re.IGNORECASE)
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'")


def text(value: object) -> str:
    r"""Return a text for a terminal: characters that are not seen are escaped.

    Line breaks and tabs stay.

    Args:
        value: any object; of one that is no text, its ``str`` is taken.

    >>> text("a\tb\x1b[2Jc\u202ed")
    'a\tb\\x1b[2Jc\\u202ed'
    """
    return _escaped(str(value), _LINE_BREAKS)


def line(value: object) -> str:
    r"""Return a text for one line of a terminal: line breaks and tabs are escaped, too.

    Args:
        value: any object; of one that is no text, its ``str`` is taken.

    >>> line("better\nidentical to the bit")
    'better\\nidentical to the bit'
    """
    return _escaped(str(value), ())


def generated(value: str) -> str:
    r"""Return what a language model wrote for a terminal: lines, tabs and joiners of words stay.

    >>> generated("one\r\ntwo\x07")
    'one\ntwo\\x07'
    """
    return _escaped(value.replace("\r\n", "\n"), (*_LINE_BREAKS, *_JOINERS))


def markdown(value: object) -> str:
    r"""Return one line of Markdown that shows a text as it is: no markup, HTML, link or formula.

    >>> markdown("[a](http://b) <i> | x_y")
    '\\[a\\](http&#58;//b) &lt;i&gt; \\| x_y'
    """
    plain = _MARKDOWN.sub(lambda match: f"\\{match[0]}", line(value))
    plain = re.sub("[&<>]", lambda match: _HTML[match[0]], plain)
    return _ADDRESS.sub(_without_link, plain)


def _without_link(match: re.Match[str]) -> str:
    word, mark = (group for group in match.groups() if group is not None)
    return f"{word}&#{ord(mark[0])};{mark[1:]}"


def label(value: object, longest: int = _LONGEST_LABEL) -> str:
    r"""Return a text for a picture: one short line, and no formula.

    Args:
        value: any object; of one that is no text, its ``str`` is taken.
        longest: the number of characters of the line; a wide one counts twice. Default: 60.

    >>> label("a $x^2$ b")
    'a \\$x^2\\$ b'
    """
    shown = line(value)
    if _width(shown) > longest:
        end = shown[-_END_OF_LABEL:]
        shown = f"{_beginning(shown, longest - 1 - _width(end))}\u2026{end}"
    if shown.startswith("_"):  # matplotlib leaves such a name out of a legend
        shown = f" {shown}"
    return shown.replace("$", r"\$")


def _width(value: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in value)


def _beginning(value: str, width: int) -> str:
    """Return the longest beginning of a text that is not wider than `width`."""
    value = value[:width]
    while _width(value) > width:
        value = value[:-1]
    return value


def csv_cell(value: str) -> str:
    """Return a text for a cell of a CSV file that no spreadsheet takes for a formula.

    :func:`from_csv_cell` is the inverse.

    >>> csv_cell("=1+1"), csv_cell("loss")
    ("'=1+1", 'loss')
    """
    return f"'{value}" if value.startswith(_FORMULA) else value


def from_csv_cell(value: str) -> str:
    """Return the text of which :func:`csv_cell` made a cell.

    >>> from_csv_cell("'=1+1")
    '=1+1'
    """
    return value.removeprefix("'")


def _escaped(value: str, visible: tuple[str, ...]) -> str:
    """Return a text with an escape for each character that is not seen, but for `visible`."""
    if value.isascii() and value.isprintable():
        return value
    return "".join(
        character if character in visible or _is_seen(character) else _escape(character)
        for character in value
    )


def _is_seen(character: str) -> bool:
    return " " <= character <= "~" or unicodedata.category(character) not in _INVISIBLE


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
