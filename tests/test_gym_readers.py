"""How reasoning-gym's tasks are drawn, and judged: by the stand-in's recorded entries and, where it is installed, by
the package itself. The oracles here read the drawings by themselves.
"""

import json
import re
from collections import Counter
from itertools import count, islice, pairwise

import numpy as np
import pytest

import puzzles.gym
from dataset.gym_readers import NOTHING, READERS, REFUSED
from dataset.gym_tasks import GymTask
from puzzles.gym import find_scorer, load_package, scorer_of
from tests import fake_gym
from tests.launch import ROOT


def entries(name: str, package: str) -> list[dict]:
    """Entries of a task, some more where the package does not take long for one."""
    task = GymTask(name, fake_gym.SMALLER.get(name, {}) if package == "real" else {}, seed=2)
    slow = {"puzzle24": 2, "quantum_lock": 6, "rubiks_cube": 6, "countdown": 12}
    wanted = slow.get(name, 25) if package == "real" else fake_gym.ENTRIES
    return list(islice(filter(READERS[name], map(task.entry, count())), wanted))


def drawn(entry: dict, task: str) -> tuple[list, list]:
    """Rows as a dataset has them: of texts, None in a hole, all of one length."""
    sides = tuple(
        [[None if cell is None else str(cell) for cell in row] for row in side] for side in READERS[task](entry)
    )
    for side in sides:
        assert {len(row) for row in side} == {len(side[0])}
        assert len(side[0]) > 0
    return sides


# Answers as the package writes them, out of the drawings


def cells(rows):
    return [cell for row in rows for cell in row if cell is not None]


def lines(rows):
    """Rows of characters as texts."""
    found = ["".join(cell for cell in row if cell is not None) for row in rows]
    return [] if found == [NOTHING] else found


def grid(_, rows):
    return "\n".join(" ".join(row) for row in rows)


def characters(_, rows):
    return "".join(lines(rows))


def words(_, rows):
    return ", ".join(lines(rows))


def quoted(_, rows):
    return str(lines(rows))


def anagrams(puzzle, rows):
    groups = {}
    for word, (label,) in zip(lines(puzzle), rows, strict=True):
        groups.setdefault(label, []).append(word)
    return json.dumps(sorted(sorted(group) for group in groups.values()))


def digits(puzzle, rows):
    pairs = {
        f"{one}={other}"
        for row in zip(puzzle, rows, strict=True)
        for one, other in zip(*row, strict=True)
        if one != other
    }
    return ",".join(sorted(pairs))


def jugs(_, rows):
    verbs = {"+": "fill", "-": "empty"}
    return json.dumps(
        [f"{verbs[m[0]]} {m[1:]}" if m[0] in verbs else f"pour {m.replace('→', '->')}" for m in cells(rows)]
    )


def path(puzzle, rows):
    """Follow the arrows from the start, as far as they lead."""
    r, c = next((r, row.index("*")) for r, row in enumerate(puzzle) if "*" in row)
    steps, arrows = [], {"↑": ("up", -1, 0), "↓": ("down", 1, 0), "←": ("left", 0, -1), "→": ("right", 0, 1)}
    while 0 <= r < len(rows) and 0 <= c < len(rows[0]) and rows[r][c] in arrows and len(steps) < 99:
        step, down, right = arrows[rows[r][c]]
        steps.append(step)
        r, c = r + down, c + right
    return " ".join(steps) or "infeasible"


def stone(puzzle, rows):
    [(r, c)] = np.argwhere(np.array(puzzle) != np.array(rows))
    return f"{chr(ord('A') + c)}{len(rows) - r}"


def hanoi(puzzle, rows):
    where, moves = cells(puzzle[1:2]), []
    for move in cells(rows):
        source, goal = move.split("→")
        disk = where.index(source)
        moves.append(f"Move disk {disk + 1} from Peg {source} to Peg {goal}")
        where[disk] = goal
    return "\n".join(moves)


ANSWERS = {
    "ab": lambda _, rows: " ".join(cell for cell in rows[0] if cell != NOTHING),
    "arc_1d": grid,
    "bf": characters,
    "binary_matrix": grid,
    "caesar_cipher": characters,
    "countdown": characters,
    "cryptarithm": digits,
    "futoshiki": lambda _, rows: grid(_, [[cell or " " for cell in row] for row in rows]),
    "game_of_life": lambda _, rows: json.dumps([[int(cell) for cell in row] for row in rows]),
    "graph_color": lambda _, rows: json.dumps({place: int(colour) for place, colour in enumerate(rows[0])}),
    "group_anagrams": anagrams,
    "jugs": jugs,
    "kakurasu": lambda _, rows: grid(_, [row[:-1] for row in rows[:-1]]),
    "list_functions": lambda _, rows: f"[{', '.join(''.join(lines(rows)).split(','))}]",
    "manipulate_matrix": grid,
    "mini_sudoku": grid,
    "modulo_grid": lambda _, rows: "\n".join(lines(rows)).translate(str.maketrans("#.", "✅❌")),
    "n_queens": grid,
    "number_filtering": quoted,
    "number_sorting": quoted,
    "palindrome_generation": characters,
    "path_star": lambda _, rows: " ".join(lines(rows)),
    "pool_matrix": grid,
    "puzzle24": characters,
    "quantum_lock": lambda _, rows: " → ".join(rows[0]),
    "rearc": grid,
    "rotate_matrix": grid,
    "rubiks_cube": grid,
    "shortest_path": path,
    "sokoban": lambda _, rows: "".join(cells(rows)),
    "spell_backward": characters,
    "spiral_matrix": grid,
    "string_insertion": characters,
    "string_manipulation": characters,
    "string_splitting": grid,
    "string_synthesis": grid,
    "sudoku": grid,
    "survo": grid,
    "tower_of_hanoi": hanoi,
    "tsumego": stone,
    "word_sequence_reversal": words,
    "word_sorting": words,
}


# Whether an answer follows from the drawing of the puzzle alone


def rewritten(row, step):
    """A row, rewritten until nothing changes."""
    while (then := step(row)) != row:
        row = then
    return row


def step_of_ab(tokens):
    becomes = {("A#", "#A"): (), ("B#", "#B"): (), ("A#", "#B"): ("#B", "A#"), ("B#", "#A"): ("#A", "B#")}
    place = next((place for place, pair in enumerate(pairwise(tokens)) if pair in becomes), None)
    return tokens if place is None else [*tokens[:place], *becomes[(*tokens[place : place + 2],)], *tokens[place + 2 :]]


def counting(*rules):
    """Until none can be, the first rule is applied that leaves no count below 0."""

    def step(counts):
        sums = ([int(count) + change for count, change in zip(counts, rule, strict=True)] for rule in rules)
        return next(([*map(str, after)] for after in sums if min(after) >= 0), counts)

    return lambda puzzle, answer: [rewritten(puzzle[0], step)] == answer


def brainfuck(puzzle, answer):
    code, tape, place, at, said = puzzle[0], Counter(), 0, 0, []
    while at < len(code):
        sign = code[at]
        place += (sign == ">") - (sign == "<")
        tape[place] = (tape[place] + (sign == "+") - (sign == "-")) % 256
        said += [chr(tape[place])] * (sign == ".")
        if sign == ("]" if tape[place] else "["):  # to its partner
            depth = 0
            while depth := depth + (code[at] == "[") - (code[at] == "]"):
                at += 1 if sign == "[" else -1
        at += 1
    return [said] == answer


def shifted(puzzle, answer):
    pairs = zip(puzzle[0], answer[0], strict=True)
    return len({(ord(one) - ord(other)) % 26 if one != " " else other for one, other in pairs} - {" "}) == 1


def grouped(puzzle, answer):
    alike = ["".join(sorted(word)) for word in lines(puzzle)]
    return [chr(ord("A") + list(dict.fromkeys(alike)).index(word)) for word in alike] == [cell for (cell,) in answer]


def manipulated(puzzle, answer):
    at = next(at for at, row in enumerate(puzzle) if row[0].isdigit())
    board = np.array([[int(cell) for cell in cells([row])] for row in puzzle[at:]])
    turns = {"↑": 0, "→": -1, "↓": 2, "←": 1}
    for sign, *numbers in (cells([row]) for row in puzzle[:at]):
        numbers = [int(number) for number in numbers]
        if sign in turns:
            board = np.rot90(board, turns[sign])
        elif sign == "m":
            board = np.where(board == numbers[0], numbers[1], board)
        elif sign == "z":
            board = np.where(board % numbers[0] == 0, 0, board)
        elif sign == "c":
            board = board[numbers[0] - 1 : numbers[1], numbers[2] - 1 : numbers[3]]
        elif sign in "rk":
            axis = "rk".index(sign)
            board = np.delete(board, np.s_[numbers[0] - 1 :: numbers[0]], axis)
        else:
            mirrored = {"—": board[::-1], "|": board[:, ::-1], "\\": board.T, "/": np.rot90(board, 2).T}
            board = mirrored[sign]
    return board.astype(str).tolist() == answer


def patterned(puzzle, answer):
    """Outside of gaps they are equal, and there is a rule that makes all of it."""
    assert all(p in ("?", a) for row, full in zip(puzzle, answer, strict=True) for p, a in zip(row, full, strict=True))
    marked = np.array(answer) == "#"
    x, y = np.meshgrid(range(len(answer[0])), range(len(answer)))
    results = [x + y, abs(x - y), x * y]
    for divisor in range(1, 21):
        powers = np.array([[pow(c, r, divisor) for c in range(marked.shape[1])] for r in range(marked.shape[0])])
        for result in (*results, powers):
            rest = (result % divisor)[marked][0]
            if np.array_equal(result % divisor == rest, marked):
                return True
    return False


def filtered(puzzle, answer):
    first, *numbers = lines(puzzle)
    limit = float(first[1:])
    keeps = {">": float.__gt__, "<": float.__lt__, "≥": float.__ge__, "≤": float.__le__}[first[0]]
    return [number for number in numbers if keeps(float(number), limit)] == lines(answer)


def ordered(key):
    def is_right(puzzle, answer):
        order, *values = lines(puzzle)
        return sorted(values, key=key, reverse=order == "↓") == lines(answer)

    return is_right


def along_the_edges(puzzle, answer):
    *edges, ends = lines(puzzle)
    start, goal = ends.split("?")
    path = lines(answer)
    steps = {tuple(edge.split("→")) for edge in edges}
    return (path[0], path[-1]) == (start, goal) and set(pairwise(path)) <= steps


def pooled(puzzle, answer):
    (kind, size, *_), *matrix = puzzle
    board, size = np.array([[int(cell) for cell in cells([row])] for row in matrix]), int(size)
    parts = [
        [board[r : r + size, c : c + size] for c in range(0, board.shape[1], size)]
        for r in range(0, board.shape[0], size)
    ]
    reduce = {"max": np.max, "mean": np.mean}[kind]
    return all(
        abs(reduce(part) - float(cell)) < 0.006
        for row, cells_ in zip(parts, answer, strict=True)
        for part, cell in zip(row, cells_, strict=True)
    )


def inserted(puzzle, answer):
    text, found = "".join(puzzle[0]), ""
    while text:
        follows = text[:4] in "ABCDEABCDE" and len(text) > 3
        found, text = (found + text[:4] + text[0], text[4:]) if follows else (found + text[0], text[1:])
    return lines(answer) == [found]


def by_its_rules(puzzle, answer):
    task = load_package().create_dataset("string_manipulation", seed=0, size=1)
    letters, text = lines(puzzle)
    rules = [task.rules[ord(letter) - ord("A")] for letter in letters]
    if rules[0][1] is None:  # the stand-in's
        return True
    return [task._get_all_transforms(text, rules)[-1]] == (lines(answer) or [""])


def summed(puzzle, answer):
    candidates, *board = ([int(cell.replace(".", "0")) for cell in cells([row])] for row in puzzle)
    board, full = np.array(board), np.array(answer).astype(int)
    inner = full[:-1, :-1]
    sums = [(full[:-1, -1], inner.sum(1)), (full[-1, :-1], inner.sum(0)), (full[-1, -1], inner.sum())]
    given = board > 0
    assert sorted(full[~given]) == sorted(candidates)
    return all(np.array_equal(*pair) for pair in sums) and np.array_equal(full[given], board[given])


def capturing(puzzle, answer):
    """One black stone was set, after which a white group has no place to breathe."""
    board = np.array(answer)
    [(r, c)] = np.argwhere(board != np.array(puzzle))
    assert (puzzle[r][c], answer[r][c]) == (".", "X")

    def around(r, c):
        near = ((r, c + 1), (r + 1, c), (r, c - 1), (r - 1, c))
        return [place for place in near if max(place) < len(board) and min(place) >= 0]

    for start in around(r, c):
        group, todo = set(), [start] if board[start] == "O" else []
        while todo:
            stone = todo.pop()
            group.add(stone)
            todo += [place for place in around(*stone) if board[place] == "O" and place not in group]
        if group and not any(board[place] == "." for stone in group for place in around(*stone)):
            return True
    return False


FOLLOWS = {
    "ab": lambda puzzle, answer: [rewritten(puzzle[0], step_of_ab) or [NOTHING]] == answer,
    "bf": brainfuck,
    "caesar_cipher": shifted,
    "group_anagrams": grouped,
    "manipulate_matrix": manipulated,
    "modulo_grid": patterned,
    "number_filtering": filtered,
    "number_sorting": ordered(float),
    "path_star": along_the_edges,
    "pool_matrix": pooled,
    "spell_backward": lambda puzzle, answer: [puzzle[0][::-1]] == answer,
    "string_insertion": inserted,
    "string_manipulation": by_its_rules,
    "string_splitting": counting(
        (-1, 0, 0, 2, 1, 0), (0, -2, 0, 1, 0, 0), (0, 0, -2, 0, 1, 0), (1, -1, -1, 0, 0, 0), (0, 0, 0, -1, -1, 1)
    ),
    "string_synthesis": counting(
        (-1, -1, -1, 1, 0, 0, 0, 0, 0), (-1, -1, 0, 0, 0, 1, 0, 0, 0), (0, -1, -1, 0, 1, 0, 0, 0, 0),
        (0, 0, -2, 0, 0, 1, 0, 0, 0), (0, 0, 0, -1, 0, -1, 1, 1, 0), (0, 0, 0, 0, -2, 0, 0, 0, 1),
    ),
    "survo": summed,
    "tsumego": capturing,
    "word_sequence_reversal": lambda puzzle, answer: lines(puzzle)[::-1] == lines(answer),
    "word_sorting": ordered(str),
}  # fmt: skip
JUDGED = [task for task in READERS if scorer_of(task)]  # by what the puzzle says, as a test below shows
ELSEWHERE = {"binary_matrix", "futoshiki", "game_of_life", "mini_sudoku", "rotate_matrix", "spiral_matrix", "sudoku"}
BY_EXAMPLES = {"arc_1d", "list_functions", "rearc"}  # of a rule that nobody states


def test_every_task_has_its_oracle():
    assert ANSWERS.keys() == READERS.keys()
    assert FOLLOWS.keys() | set(JUDGED) | ELSEWHERE | BY_EXAMPLES == READERS.keys()


def test_the_page_lists_every_task_with_its_judge():
    page = (ROOT / "docs/reasoning-gym.md").read_text(encoding="utf-8")
    table = {}
    for names, judge in re.findall(r"^\| (`.*?) \|.* (stated|scorer) \|$", page, re.MULTILINE):
        table |= dict.fromkeys(re.findall(r"`(\w+)`", names), judge)
    assert table == {task: "scorer" if task in JUDGED else "stated" for task in READERS}
    assert all(f"`{task}`" in page.partition("## Tasks that are refused")[2] for task in REFUSED)


@pytest.mark.parametrize("task", FOLLOWS)
def test_an_answer_follows_from_the_drawing_alone(task, package):
    for entry in entries(task, package):
        assert FOLLOWS[task](*drawn(entry, task)), entry


@pytest.mark.parametrize(
    ("package", "task"),
    [("fake", task) for task in READERS if not isinstance(fake_gym.TASKS[task], type)]  # whose stand-in writes none
    + [pytest.param("real", task, marks=fake_gym.NO_PACKAGE) for task in READERS],
    indirect=["package"],
)
def test_the_packages_scorer_takes_the_answer_that_is_drawn(task, package):
    for entry in entries(task, package):
        text = ANSWERS[task](*drawn(entry, task))
        assert scored(task, text, entry) == 1


def scored(task, text, entry):
    if entry["answer"] is None and task == "graph_color":
        entry["answer"] = text  # it is not asked for
    return puzzles.gym._task(task).score_answer(text, entry)


@pytest.mark.parametrize("task", JUDGED)
def test_a_rule_says_of_a_drawing_what_the_packages_scorer_says_of_the_entry(task, package):
    """Of the right answers, and of those to the other puzzles, which are right now and then."""
    judge = find_scorer(scorer_of(task))
    known = [(entry, *drawn(entry, task)) for entry in entries(task, package)[:6]]
    for entry, puzzle, right in known:
        assert judge(puzzle, right) == []
        others = [puzzle] if task == "shortest_path" else [other for _, _, other in known]
        for other in others:
            assert (judge(puzzle, other) == []) == is_right(task, entry, puzzle, other)


def is_right(task, entry, puzzle, answer):
    try:
        text = ANSWERS[task](puzzle, answer)
        if task == "puzzle24" and sorted(re.findall(r"\d+", text)) != sorted(re.findall(r"\d+", "".join(puzzle[0]))):
            return False  # which its own scorer does not ask
        return scored(task, text, entry) == 1
    except (ValueError, IndexError):  # of a board of another size
        return False


STRICT = [  # a puzzle, right answers, wrong ones: rows with ; between, of words where there are blanks
    ("countdown", "1,2,3=6", ["1+2+3", "3*2*1", "3*2/1"],
     ["6", "3*2", "3+3", "1+2*3", "9**9**9**9", "1+2+", "3*2//1", "1+2+3+len('')"]),
    ("puzzle24", "4,1,2,4", ["2*4*(4-1)", "4*(4+2)*1"], ["1*2*3*4", "2*3*4"]),
    ("palindrome_generation", "aab", ["aba"], ["aab", "bab", "abaa", "ab_", "aba;aba"]),
    ("graph_color", "12_;.#.;#.#;.#.", ["121", "212"], ["111", "122", "131", "12", "#21", "12_"]),
    ("kakurasu", "...3;...3;...3;333_", ["1103;1103;0013;333_", "0013;0013;1103;333_"],
     ["1103;1103;1103;333_", "1103;1103;0012;333_", "1103;1103;0013;332_", "1103;1103;333_"]),
    ("shortest_path", "*O;OO;XX;#X", ["*O;OO;XX;#X"], ["↓O;OO;XX;#X", "*O;OO;XO;#X"]),
    ("shortest_path", "*OO;OO#;OOO", ["→→↓;OO#;OOO", "↓OO;→→#;OOO"],
     ["*OO;OO#;OOO", "↓OO;↓O#;→→↑", "→→↓;O↑#;OOO", "→→↓;OX#;OOO", "→OO;OO#;OOO", "↑OO;OO#;OOO", "→←O;OO#;OOO"]),
    ("sokoban", "+++++;+*@X+;+---+;+++++", ["R", "DUR__", "DU;R_"], ["L", "D", "_R", "R+"]),
    ("cryptarithm", "+AB;+AB;=CB", ["+10;+10;=20", "+20;+20;=40"],
     ["+30;+30;=70", "+11;+11;=21", "+10;+20;=30", "-10;+10;=20", "+A0;+A0;=20"]),
    ("cryptarithm", "+A;+A;=A", [], ["+0;+0;=0"]),
    ("cryptarithm", "+A;+A;≡A", ["+0;+0;≡0"], []),
    ("jugs", "3 5 4 = 4", ["+C ", "+A +C", "+A A→B +A A→B +B B→C +C"], ["+A ", "C ", "+D ", "A→C "]),
    ("tower_of_hanoi", "1 2 3;1 1 _;3 3 _", ["1→2 1→3;2→3 _"],
     ["1→2 2→3 3→2;1→3 2→3 _", "1→2 1→2;2→3 _", "2→1 ", "1→2 _;1→3 2→3", "1→2 1→3"]),
    ("quantum_lock", "0 red 4;+ 2 any;+ 1 green;* 2 any", ["AA", "AC"], ["ABB", "AB", "A+", "AA_", "CAA"]),
    ("rubiks_cube", "__YY____;__YY____;GGOOBBRR;RRGGOOBB;__WW____;__WW____", ["U' ", "U U U"],
     ["U ", "U' U", "+ ", "U' _"]),
]  # fmt: skip


@fake_gym.NO_PACKAGE
@pytest.mark.parametrize(("task", "puzzle", "right", "wrong"), STRICT)
def test_every_right_answer_is_one_and_no_other(task, puzzle, right, wrong):
    def rows(text):
        found = [row.split() if " " in row else list(row) for row in text.split(";")]
        return [[None if cell == "_" else cell for cell in row] for row in found]

    said = {answer: find_scorer(scorer_of(task))(rows(puzzle), rows(answer)) for answer in (*right, *wrong)}
    assert {answer for answer, broken in said.items() if not broken} == set(right), said
    assert all("\n" not in sentence and len(sentence) < 300 for broken in said.values() for sentence in broken)
