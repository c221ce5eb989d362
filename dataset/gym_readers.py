"""How the tasks of reasoning-gym (PyPI) are drawn: an entry of the package -> an input and an output, rows of cells.

A cell is a symbol or a number, or None in a hole. Arrays come from an entry's metadata where it has them, else out of
its question and answer. What a question says beside its grid is drawn above it, for it decides on the answer: the turn
of `rotate_matrix` is a row of arrows, the rules of `string_manipulation` are a row of letters. Where the examples of a
task obey different rules that none of them states (`rearc`, `arc_1d`), `IDS` says to which one belongs.

A task is here if its question and its answer are a grid or a short sequence, if the one decides on the other, and if
the package says what the answer is, the same in every process. docs/reasoning-gym.md has the table of what is drawn
where; puzzles/gym.py reads the drawings back, where several answers are right.
"""

import json
import re
from collections.abc import Callable, Iterable

from puzzles.gym import ARROWS, load_package

Drawn = tuple[list, list]  # input and output
Reader = Callable[[dict], Drawn | None]  # None: in this entry the question does not decide on the answer

NOTHING = "∅"  # an answer without a cell


def _characters(texts: Iterable[str]) -> list[list]:
    """Texts as rows of characters, all as long as the longest."""
    return _even([list(text) for text in texts])


def _even(rows: list[list]) -> list[list]:
    width = max(map(len, rows))
    return [[*row, *[None] * (width - len(row))] for row in rows]


def _wrapped(sequence: list, width: int) -> list[list]:
    """A long sequence, in rows of this width."""
    return _even([sequence[start : start + width] for start in range(0, len(sequence), width)])


# Grids


def _boards(entry: dict) -> Drawn:
    """Number puzzles, whose empty cells are 0."""
    puzzle, solution = entry["metadata"]["puzzle"], entry["metadata"]["solution"]
    return [[cell or "." for cell in row] for row in puzzle], solution


def _queens(entry: dict) -> Drawn:
    return entry["metadata"]["puzzle"], [row.split() for row in entry["answer"].split("\n")]


def _futoshiki(entry: dict) -> Drawn:
    """Cells with their inequalities between them, and holes where there is none."""
    drawn = []
    for board in _boards(entry):
        size = 2 * len(board) - 1
        rows: list[list] = [[None] * size for _ in range(size)]
        for r, row in enumerate(board):
            rows[2 * r][::2] = row
        for r1, c1, r2, c2, sign in entry["metadata"]["constraints"]:
            rows[r1 + r2][c1 + c2] = sign if r1 == r2 else {"<": "∧", ">": "∨"}[sign]
        drawn.append(rows)
    return drawn[0], drawn[1]


def _kakurasu(entry: dict) -> Drawn:
    """The sums stand right of the rows and below the columns, in input and output."""
    asked = entry["metadata"]
    sums = [*asked["col_sums"], None]
    empty, solution = (
        [[*row, total] for row, total in zip(rows, asked["row_sums"], strict=True)]
        for rows in ([["."] * len(row) for row in asked["solution"]], asked["solution"])
    )
    return [*empty, sums], [*solution, sums]


def _survo(entry: dict) -> Drawn:
    """Above the board stand the numbers to be filled in."""
    board, solution = _boards(entry)
    return _even([entry["metadata"]["candidate_numbers"], *board]), solution


def _cryptarithm(entry: dict) -> Drawn:
    """The sum as it is written on paper, in letters and in digits; ≡ stands for = where a number may begin with 0."""
    asked = entry["metadata"]
    words = [*asked["words_letters"], asked["result_letters"]]
    width = max(map(len, words))
    letters = [[None] * (width - len(word)) + list(word) for word in words]
    signs = [*"+" * (len(words) - 1), "≡" if asked["allow_leading_zero"] else "="]
    digits = [[letter and asked["letter_to_digit"][letter] for letter in row] for row in letters]
    drawn = ([[sign, *row] for sign, row in zip(signs, rows, strict=True)] for rows in (letters, digits))
    return next(drawn), next(drawn)


def _matrix(entry: dict) -> Drawn:
    return entry["metadata"]["matrix"], entry["metadata"]["solution"]


def _rotation(entry: dict) -> Drawn:
    """Above the matrix stands, in every column, an arrow to where its top goes."""
    matrix, solution = _matrix(entry)
    arrow = "↑→↓←"[entry["metadata"]["num_rotations"] % 4]
    return [[arrow] * len(matrix[0]), *matrix], solution


def _manipulation(entry: dict) -> Drawn:
    """Above the matrix stands what is to be done, a row for each step: a sign, and its numbers."""
    signs = {"hmirror": "—", "vmirror": "|", "dmirror": "\\", "cmirror": "/", "map": "m", "zero_divisible": "z"}
    signs |= {"crop": "c", "remove_every_nth_row": "r", "remove_every_nth_col": "k"}
    steps = []
    for step in entry["metadata"]["operations"]:
        name, numbers = step["transform"], [value for value in step.values() if type(value) is int]
        sign = "↑→↓←"[int(step["degrees"]) // 90 % 4] if name == "rotate" else signs[name]
        steps.append([sign, *numbers])
    matrix, solution = _matrix(entry)
    return _even([*steps, *matrix]), solution


def _pooling(entry: dict) -> Drawn:
    """Above the matrix stands the kind of pooling, with its size. Numbers are as the answer has them, such as 5.22."""
    asked = entry["metadata"]
    kind = {"average": "mean", "max": "max"}[asked["pool_type"]]
    pooled = [row.split() for row in entry["answer"].split("\n")]
    return _even([[kind, asked["pool_size"]], *asked["matrix"]]), pooled


def _spiral(entry: dict) -> Drawn:
    matrix, sequence = _matrix(entry)
    return matrix, [sequence]


def _arrays(entry: dict) -> Drawn:
    """The last array of the question, and the answer, both in JSON."""
    question = re.search(r".*(\[\s*\[.*\]\s*\])", entry["question"], re.DOTALL)[1]
    return json.loads(question), json.loads(entry["answer"])


def _modulo(entry: dict) -> Drawn:
    """Its marks are # and . here, and ? in a gap, for which pictures have letters."""
    signs = str.maketrans("✅❌❔", "#.?")
    question, answer = (
        text.translate(signs).split("\n") for text in (entry["question"].split("\n\n")[-1], entry["answer"])
    )
    return _characters(question), _characters(answer)


def _pair(entry: dict) -> Drawn:
    return entry["metadata"]["input"], entry["metadata"]["output"]


def _path(entry: dict) -> Drawn:
    """In the output every cell of the path, from the start on, has an arrow to the next; no arrow: there is no path."""
    matrix, steps = _matrix(entry)
    drawn = [list(row) for row in matrix]
    r, c = next((r, row.index("*")) for r, row in enumerate(matrix) if "*" in row)
    moves = {step: (arrow, down, right) for arrow, (step, down, right) in ARROWS.items()}
    for step in steps:
        drawn[r][c], down, right = moves[step]
        r, c = r + down, c + right
    return matrix, drawn


def _go(entry: dict) -> Drawn | None:
    """The output is the board with the stone that captures, which here and there none does, or another does too."""
    board = entry["metadata"]["board"]
    move = (len(board) - int(entry["answer"][1:]), ord(entry["answer"][0]) - ord("A"))
    captures = load_package().create_dataset("tsumego")._would_capture
    places = [(r, c) for r, row in enumerate(board) for c, cell in enumerate(row) if cell == "."]
    if [place for place in places if captures(board, *place, "X")] != [move]:
        return None
    played = [list(cells) for cells in board]
    played[move[0]][move[1]] = "X"
    return board, played


def _sokoban(entry: dict) -> Drawn:
    """The moves U, D, L and R, in rows as wide as the board."""
    board = [row.split() for row in entry["metadata"]["gamestr"].strip().split("\n")]
    return board, _wrapped(list(entry["answer"]) or [NOTHING], len(board[0]))


def _cube(entry: dict) -> Drawn:
    """The cube unfolded, as the question has it, and its scrambling undone."""
    width = 12 * entry["metadata"]["cube_size"]
    lines = [line for line in entry["question"].split("\n") if len(line) == width and not line.strip(" WYRGBO")]
    net = [[None if cell == " " else cell for cell in line[1::3]] for line in lines]
    moves = reversed(entry["metadata"]["scramble_moves"].split())
    return net, [[move[:-1] if move.endswith("'") else move + "'" for move in moves]]


def _colouring(entry: dict) -> Drawn:
    """Above the matrix of the edges, marked #, stand the colours. The output has that of each vertex, in order."""
    asked = entry["metadata"]["puzzle"]
    edges = {frozenset(edge) for edge in asked["edges"]}
    vertices = asked["vertices"]
    matrix = [["#" if frozenset((one, other)) in edges else "." for other in vertices] for one in vertices]
    colours = entry["metadata"]["possible_answer"]
    return _even([asked["color_options"], *matrix]), [[colours[vertex] for vertex in vertices]]


def _hanoi(entry: dict) -> Drawn:
    """The pegs; then of each disk, the smallest first, where it is and where it is to be. A move is from→to."""
    asked = entry["metadata"]
    start, target = ([asked[name]] * asked["num_disks"] for name in ("start_peg", "target_peg"))
    moves = re.findall(r"from Peg (\d+) to Peg (\d+)", entry["answer"])
    pegs = list(range(1, asked["num_pegs"] + 1))
    puzzle = _even([pegs, start, target])
    return puzzle, _wrapped(["→".join(move) for move in moves], len(puzzle[0]))


# Words and numbers, each a row of characters


def _sorting(entry: dict) -> Drawn:
    """Above the numbers or words stands ↑ for ascending, ↓ for descending order."""
    asked = entry["metadata"]
    given, found = (
        next(asked[key] for key in keys if key in asked)
        for keys in (("transformed_words", "original_numbers"), ("sorted_words", "sorted_numbers"))
    )
    return _characters([{"ascending": "↑", "descending": "↓"}[asked["direction"]], *given]), _characters(found)


def _filtering(entry: dict) -> Drawn:
    """Above the numbers stands which of them are kept, such as >-52.3."""
    asked = entry["metadata"]
    signs = {"keep_larger": ">", "keep_smaller": "<", "remove_larger": "≤", "remove_smaller": "≥"}
    kept = signs[asked["operation"]] + asked["filter_value"]
    return _characters([kept, *asked["original_numbers"]]), _characters(asked["result"] or [NOTHING])


def _words(entry: dict) -> Drawn:
    """The words, and the same from the last to the first."""
    words = entry["metadata"]["words"]
    return _characters(words), _characters(reversed(words))


def _anagrams(entry: dict) -> Drawn:
    """The output has a letter for each word: A for the first and its anagrams, B for the next that is none, …"""
    words, groups = entry["metadata"]["words"], {}
    for word in words:
        groups.setdefault("".join(sorted(word)), chr(ord("A") + len(groups)))
    return _characters(words), [[groups["".join(sorted(word))]] for word in words]


def _star(entry: dict) -> Drawn:
    """The edges, and last from where to where the path shall go; the output has the labels on it."""
    *edges, ends = re.split(r"[|/]", re.search(r"\n\|(\d.*\d) = $", entry["question"])[1])
    lines = [edge.replace(" ", "→") for edge in edges] + [ends.replace(" ", "?")]
    return _characters(lines), _characters(entry["answer"].split())


def _functions(entry: dict) -> Drawn:
    """Lists with what becomes of each, and last the one that is asked for."""
    pairs = re.findall(r"Input \d+: \[(.*)\]\nOutput \d+: \[(.*)\]", entry["question"])
    asked = re.search(r"\nInput: \[(.*)\]\nOutput:", entry["question"])[1]
    lines = ["→".join(pair).replace(" ", "") for pair in (*pairs, (asked, ""))]
    return _characters(lines), _characters([entry["answer"].strip("[]").replace(" ", "") or NOTHING])


def _string_rules(entry: dict) -> Drawn | None:
    """Above the string stand the rules in the order in which they are tried, lettered as the package lists them."""
    if not entry["answer"]:  # to its scorer, nothing is no answer
        return None
    listed = [rule for rule, _ in load_package().create_dataset("string_manipulation").rules]
    rules = "".join(chr(ord("A") + listed.index(rule)) for rule in entry["metadata"]["selected_rules"])
    return _characters([rules, entry["metadata"]["string"]]), _characters([entry["answer"]])


# Sequences


def _text(key: str) -> Callable[[dict], Drawn]:
    """A text of the metadata, and the answer, in characters."""
    return lambda entry: ([list(entry["metadata"][key])], [list(entry["answer"])])


def _palindrome(entry: dict) -> Drawn:
    return [entry["metadata"]["letters"]], [list(entry["answer"])]


def _sequences(entry: dict) -> Drawn:
    pair = entry["metadata"]["test_example"]
    return [pair["input"]], [pair["output"]]


def _program(entry: dict) -> Drawn:
    """The tokens of a program of A::B, and those that are left."""
    program = re.search(r"following program:\s+(.*)\n", entry["question"])[1]
    return [program.split()], [entry["answer"].split() or [NOTHING]]


def _counts(entry: dict) -> Drawn:
    """How many there are of each thing, at first and at last."""
    return [entry["metadata"]["states"][0]], [entry["metadata"]["solution"]]


def _expression(entry: dict) -> Drawn:
    """Numbers with commas between, in `countdown` with = and the target; an expression of them."""
    asked = entry["metadata"]
    target = f"={asked['target']}" if "target" in asked else ""
    return [list(",".join(map(str, asked["numbers"])) + target)], [list(entry["answer"].replace(" ", ""))]


def _jugs(entry: dict) -> Drawn:
    """What the jugs hold, = and the target; moves are +A to fill, -A to empty, A→B to pour."""
    puzzle = entry["metadata"]["puzzle"]
    moves = [move.split() for move in json.loads(entry["answer"])]
    drawn = [{"fill": "+", "empty": "-", "pour": ""}[verb] + jugs.replace("->", "→") for verb, jugs in moves]
    return [[*puzzle["jug_capacities"], "=", puzzle["target"]]], [drawn]


def _lock(entry: dict) -> Drawn:
    """A row with the number, the light and the target, and one for each button, A and on."""
    asked = entry["metadata"]
    signs = {"add": "+", "subtract": "-", "multiply": "*"}
    buttons = [[signs[button["type"]], button["value"], button["active_state"]] for button in asked["buttons"]]
    return [[asked["initial_value"], asked["initial_state"], asked["target_value"]], *buttons], [asked["solution_path"]]


READERS: dict[str, Reader] = {
    "ab": _program,
    "arc_1d": _sequences,
    "bf": _text("bf_program"),
    "binary_matrix": _matrix,
    "caesar_cipher": _text("cipher_text"),
    "countdown": _expression,
    "cryptarithm": _cryptarithm,
    "futoshiki": _futoshiki,
    "game_of_life": _arrays,
    "graph_color": _colouring,
    "group_anagrams": _anagrams,
    "jugs": _jugs,
    "kakurasu": _kakurasu,
    "list_functions": _functions,
    "manipulate_matrix": _manipulation,
    "mini_sudoku": _boards,
    "modulo_grid": _modulo,
    "n_queens": _queens,
    "number_filtering": _filtering,
    "number_sorting": _sorting,
    "palindrome_generation": _palindrome,
    "path_star": _star,
    "pool_matrix": _pooling,
    "puzzle24": _expression,
    "quantum_lock": _lock,
    "rearc": _pair,
    "rotate_matrix": _rotation,
    "rubiks_cube": _cube,
    "shortest_path": _path,
    "sokoban": _sokoban,
    "spell_backward": _text("word"),
    "spiral_matrix": _spiral,
    "string_insertion": _text("string"),
    "string_manipulation": _string_rules,
    "string_splitting": _counts,
    "string_synthesis": _counts,
    "sudoku": _boards,
    "survo": _survo,
    "tower_of_hanoi": _hanoi,
    "tsumego": _go,
    "word_sequence_reversal": _words,
    "word_sorting": _sorting,
}
IDS = {"arc_1d": "task_name", "rearc": "task_id"}  # where the metadata says to which rule an example belongs
REFUSED = {
    "arc_agi": "its demonstrations and their augmentation are in no pair; dataset/build_arc_dataset.py builds ARC",
    "boxnet": "the package has no answers to it",
    "knight_swap": "its boards do not say which moves are taken away, and its answers differ from process to process",
    "propositional_logic": "the package has no answers to it",
    "rush_hour": "the package has no answers to it",
    "word_ladder": "its answers differ from process to process",
}
SIZES = {"list_functions": 1 << 22}  # entries, where the package keeps a list of them
