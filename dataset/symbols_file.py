"""How symbols look, from a YAML file: a glyph, a colour, or both for each.

"#": {glyph: "█", colour: "#2b3440"}
".": {glyph: ""}                        # nothing is written in such a cell
o: {colour: path}                       # a colour of puzzles/draw.py, or one that CSS knows by name
3: red                                  # a colour alone
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import UserError
from files import read_yaml
from puzzles.cells import composed
from puzzles.draw import PALETTE

_LONGEST_GLYPH = 16  # characters


def read_symbols(path: Path, symbols: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """-> the fill and the glyph of each of the symbols that the file gives one. Raises `UserError` with the symbol."""
    content = read_yaml(path, 'write it as  "#": {glyph: "█", colour: black}  with a line for each symbol')
    if not isinstance(content, dict):
        raise UserError(f'{path} is not a mapping; write it as  "#": {{glyph: "█", colour: black}}')
    fills, glyphs = {}, {}
    for key, entry in content.items():
        symbol = str(key) if type(key) is int else composed(key) if isinstance(key, str) else key
        where = f"{path}: the symbol {symbol!r:.40}"
        if not isinstance(symbol, str):
            raise UserError(f"{where} is not text; put it in quotes")
        if symbol not in symbols:
            known = " ".join(symbols)
            raise UserError(f"{where} is none of the dataset's, which are {known:.200}")
        entry = {"colour": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not entry.keys() <= {"glyph", "colour"}:
            raise UserError(f"{where} has {entry!r:.60}; give it glyph, colour or both")
        if "colour" in entry:
            fills[symbol] = _fill(entry["colour"], where)
        if "glyph" in entry:
            glyphs[symbol] = _glyph(entry["glyph"], where)
    return fills, glyphs


def _fill(colour: Any, where: str) -> str:
    """A name in the palette, or #rrggbb."""
    from PIL import ImageColor

    if isinstance(colour, str) and colour in PALETTE:
        return colour
    try:
        return "#{:02x}{:02x}{:02x}".format(*ImageColor.getrgb(colour)[:3])
    except (ValueError, TypeError, AttributeError):
        raise UserError(
            f'{where} has the colour {colour!r:.40}; write it as "#2b3440", in quotes, or by name'
        ) from None


def _glyph(glyph: Any, where: str) -> str:
    glyph = str(glyph) if type(glyph) is int else glyph
    if not isinstance(glyph, str) or len(glyph) > _LONGEST_GLYPH or not glyph.isprintable():
        raise UserError(f"{where} has the glyph {glyph!r:.40}; a glyph is up to {_LONGEST_GLYPH} printable characters")
    return glyph
