// The rules: boards are arrays of digits, row by row, with 0 for a blank. puzzles/sudoku.py reads the same texts.

function createRules(size, [boxRows, boxColumns]) {
  const cells = size * size, across = size / boxColumns;
  const boxOf = cell => Math.floor(Math.floor(cell / size) / boxRows) * across + Math.floor(cell % size / boxColumns);
  const units = [
    ["row", cell => Math.floor(cell / size)], ["column", cell => cell % size], ["box", boxOf],
  ].flatMap(([name, which]) => Array.from({ length: size }, (_, i) =>
    ({ name: `${name} ${i + 1}`, cells: [...Array(cells).keys()].filter(cell => which(cell) === i) })));
  const unitsOf = Array.from({ length: cells }, (_, cell) => units.filter(unit => unit.cells.includes(cell)));

  // Every digit that a unit holds more than once: [{ unit, digit, cells }].
  function repeated(board) {
    return units.flatMap(unit => Array.from({ length: size }, (_, i) => i + 1).flatMap(digit => {
      const same = unit.cells.filter(cell => board[cell] === digit);
      return same.length > 1 ? [{ unit: unit.name, digit, cells: same }] : [];
    }));
  }

  // What is wrong with an answer, in words; nothing if it is a solution that keeps the clues.
  function violations(clues, answer) {
    const names = { 2: "two", 3: "three", 4: "four" };
    const empty = answer.filter(digit => !digit).length, lost = clues.filter((clue, i) => clue && clue !== answer[i]).length;
    return [
      ...(empty ? [`${empty} ${empty === 1 ? "cell is" : "cells are"} empty`] : []),
      ...(lost ? [`${lost} ${lost === 1 ? "clue has" : "clues have"} been changed`] : []),
      ...repeated(answer).map(({ unit, digit, cells: { length } }) => `${unit} has ${names[length] ?? length} ${digit}s`),
    ];
  }

  // Solutions of a puzzle, two at most; `complete` is false if the search was given up before it knew.
  function solve(clues, patience = 100_000) {
    const board = Array.from(clues), found = [];
    if (repeated(board).length) return { found, complete: true };
    const taken = new Map(units.map(unit => [unit, unit.cells.reduce((bits, cell) => bits | (board[cell] && 1 << board[cell]), 0)]));
    const search = () => {
      if (patience-- <= 0) return;
      let best = -1, open = 0, fewest = size + 1;
      for (let cell = 0; cell < cells && fewest > 1; cell++) {  // a cell with the fewest digits left
        if (board[cell]) continue;
        let free = (1 << size + 1) - 2;
        for (const unit of unitsOf[cell]) free &= ~taken.get(unit);
        let count = 0;
        for (let bits = free; bits; bits &= bits - 1) count++;
        if (count < fewest) [best, open, fewest] = [cell, free, count];
      }
      if (best < 0) { found.push(Array.from(board)); return; }
      for (let digit = 1; digit <= size && found.length < 2; digit++) {
        if (!(open & 1 << digit)) continue;
        board[best] = digit;
        for (const unit of unitsOf[best]) taken.set(unit, taken.get(unit) | 1 << digit);
        search();
        for (const unit of unitsOf[best]) taken.set(unit, taken.get(unit) & ~(1 << digit));
        board[best] = 0;
      }
    };
    search();
    return { found, complete: patience > 0 || found.length > 1 };
  }

  // A text as people write it -> { board } or { error }.
  function parse(text) {
    const read = [...text].filter(character => !/[\s|+\-│┃┼╋─━═║╬┬┴├┤┌┐└┘]/u.test(character));
    const odd = read.find(character => !/[.0-9]/.test(character));
    if (odd) return { error: `“${odd}” is no cell: write digits, with . or 0 for a blank.` };
    if (read.length !== cells) return { error: `That is ${read.length} of ${cells} cells.` };
    const high = read.find(character => Number(character) > size);
    if (high) return { error: `${high} is too large: the digits are 1 to ${size}.` };
    return { board: read.map(character => character === "." ? 0 : Number(character)) };
  }

  return { size, cells, repeated, violations, solve, parse, write: board => Array.from(board, digit => digit || ".").join("") };
}
