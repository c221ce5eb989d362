"use strict";

const $ = id => document.getElementById(id);
const clamp = (value, low, high) => Math.max(low, Math.min(value, high));
const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const percent = share => `${share > .995 && share < 1 ? "99" : share < .005 && share > 0 ? "under 1" : Math.round(100 * share)} %`;

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const data = JSON.parse($("data").textContent);
const rules = createRules(data.size, data.box);
const { size, cells } = rules;
const BLANK = 1, FIRST_DIGIT = 2;  // tokens, as in puzzles/sudoku.py
const digitOf = token => token >= FIRST_DIGIT ? token - 1 : 0;

// ---------- The network, which thinks in a thread of its own ----------

function weights() {
  const text = atob($("weights").textContent.trim()), bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes.buffer;
}

// Answers messages { job, tokens, steps } with one { job, ms, …step } for each step; a newer job ends an older one.
function answerJobs(port, spec, bytes) {
  const network = createNetwork(spec, bytes);
  let current = 0;
  port.onmessage = async ({ data: { job, tokens, steps } }) => {
    current = job;
    network.start(tokens);
    for (let i = 0; i < steps; i++) {
      const before = performance.now(), step = network.step();
      port.postMessage({ job, ms: performance.now() - before, kernels: network.kind, ...step });
      await new Promise(done => setTimeout(done));  // lets a newer job in
      if (current !== job) return;
    }
  };
}

// A port to the network: a worker's or, where a page may have none, one in this thread.
function startNetwork() {
  const source = `${$("kernels").textContent}\n${$("network").textContent}\n${answerJobs}
    onmessage = ({ data: { spec, bytes } }) => answerJobs(self, spec, bytes);`;
  try {
    const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
    worker.postMessage({ spec: data.network, bytes: weights() });
    return worker;
  } catch {
    const { port1, port2 } = new MessageChannel();
    answerJobs(port2, data.network, weights());
    return port1;
  }
}

// ---------- What is shown ----------

const state = {
  clues: Array(cells).fill(0),
  known: null,  // what the rules say of the puzzle: { found, complete }
  steps: [],  // as far as the network has come: { answer, sure, others, confidence, halts, ms }
  wanted: data.network.steps,  // how many it is to take
  at: 0,  // the step in view; 0: the puzzle alone
  chosen: -1,  // a cell
  job: 0,
  playing: false,
  stopsAtHalt: true,
};
const network = startNetwork();
let timer = 0;

network.onmessage = ({ data: step }) => {
  if (step.job !== state.job) return;
  state.steps.push(readStep(step));
  document.body.dataset.kernels = step.kernels;
  show();
};

// Probabilities as the training loss has them: of softmax, or of stablemax, which is x + 1, or 1 / (1 - x) below 0.
function probabilities(logits) {
  const most = Math.max(...logits);
  const parts = Array.from(logits, x => data.network.link === "softmax" ? Math.exp(x - most) : x < 0 ? 1 / (1 - x) : x + 1);
  const sum = parts.reduce((a, b) => a + b);
  return parts.map(part => part / sum);
}

function readStep({ logits, halt, wantsToHalt, ms }) {
  const vocab = data.network.vocab, answer = [], sure = [], shares = [];
  for (let cell = 0; cell < cells; cell++) {
    const own = logits.subarray(cell * vocab, (cell + 1) * vocab);
    let best = 0;
    for (let token = 1; token < vocab; token++) if (own[token] > own[best]) best = token;
    answer.push(digitOf(best));
    shares.push(probabilities(own));
    sure.push(shares[cell][best]);
  }
  return { answer, shares, sure, confidence: 1 / (1 + Math.exp(-halt)), halts: wantsToHalt, ms };
}

const haltStep = () => state.steps.findIndex(step => step.halts) + 1;  // 0: not yet, or never
const boardAt = at => at ? state.steps[at - 1].answer : state.clues;
const isGiven = cell => state.clues[cell] > 0 && state.clues[cell] === boardAt(state.at)[cell];

// Take a puzzle: think about it anew, from its first step.
function take(clues, { play = false } = {}) {
  Object.assign(state, { clues: Array.from(clues), steps: [], at: 0, known: rules.solve(clues), stopsAtHalt: true });
  think();
  setPlaying(play);
  $("text").value = rules.write(clues);
  $("text-error").textContent = "";
  history.replaceState(null, "", `#${rules.write(clues)}`);  // a link to it, which a reload keeps
  const same = data.puzzles.findIndex(({ text }) => text === rules.write(clues));
  $("puzzles").value = same < 0 ? "own" : String(same);
  show();
}

function think() {
  state.steps = [];
  const tokens = Uint8Array.from(state.clues, digit => digit ? digit + 1 : BLANK);
  network.postMessage({ job: ++state.job, tokens, steps: state.wanted });
}

// ---------- Playing ----------

function setPlaying(playing) {
  clearTimeout(timer);
  state.playing = playing;
  if (playing) timer = setTimeout(playOn, state.at ? Number($("speed").value) : 700);
}

function playOn() {
  const halt = haltStep(), next = state.at + 1;
  if (next <= state.steps.length) state.at = next;
  const ends = state.at === state.wanted || (state.stopsAtHalt && state.at === halt && halt > 0);
  setPlaying(!ends);
  show();
}

function togglePlay() {
  if (state.playing) { setPlaying(false); show(); return; }
  const halt = haltStep();
  if (state.at >= state.wanted) state.at = 0;
  state.stopsAtHalt = !halt || state.at < halt;  // whoever goes on from there wants to see the rest
  playOn();
}

function go(at) {
  state.at = clamp(at, 0, state.steps.length);
  setPlaying(false);
  show();
}

// ---------- Drawing ----------

const cellNodes = [];

function buildBoard() {
  const board = $("board"), [boxRows, boxColumns] = data.box;
  document.documentElement.style.setProperty("--size", size);
  for (let row = 0; row < size; row++) {
    const line = make("div");
    line.setAttribute("role", "row");
    for (let column = 0; column < size; column++) {
      const cell = row * size + column, node = make("div", { tabIndex: cell ? -1 : 0 });
      node.setAttribute("role", "gridcell");
      node.addEventListener("focus", () => choose(cell));
      node.addEventListener("mouseenter", () => describeCell(cell));
      node.addEventListener("mouseleave", () => describeCell(state.chosen));
      node.frame = ["square-cell", column === size - 1 ? "last-column" : (column + 1) % boxColumns ? "" : "box-right",
        row === size - 1 ? "last-row" : (row + 1) % boxRows ? "" : "box-below"].filter(Boolean).join(" ");
      cellNodes.push(node);
      line.append(node);
    }
    board.append(line);
  }
}

function show() {
  const { at, steps, clues, wanted } = state, step = at ? steps[at - 1] : null;
  const board = boardAt(at), earlier = at ? boardAt(at - 1) : board;
  const broken = new Set(rules.repeated(board).flatMap(({ cells }) => cells));
  board.forEach((digit, cell) => {
    if (clues[cell] && digit !== clues[cell]) broken.add(cell);
    const changed = at > 1 && digit !== earlier[cell];
    const doubt = step ? 1 - step.sure[cell] : 0;
    drawCell(cell, { digit, clue: isGiven(cell), changed, wrong: broken.has(cell), doubt });
  });
  showStatus(board, earlier, step);
  showPlayer(wanted, steps);
  showNotice();
  describeCell(state.chosen);
}

function drawCell(cell, { digit, clue, changed, wrong, doubt }) {
  const node = cellNodes[cell];
  node.className = [node.frame, clue ? "clue" : "answer", changed && "changed", wrong && "wrong", cell === state.chosen && "chosen"]
    .filter(Boolean).join(" ");
  node.style.setProperty("--doubt", clue ? 0 : doubt.toFixed(3));
  const rivals = state.at && !clue ? others(cell).filter(([, share]) => share >= .1).map(([name]) => name) : [];
  node.replaceChildren(make("span", { textContent: digit || "" }), ...(rivals.length ? [make("small", { textContent: rivals.join("") })] : []));
  const words = [`row ${Math.floor(cell / size) + 1}, column ${cell % size + 1}:`, digit ? `${digit},` : "empty",
    clue ? "given" : digit && state.at ? `${percent(1 - doubt)} sure` : "", changed ? ", just changed" : "", wrong ? ", breaks a rule" : ""];
  node.setAttribute("aria-label", words.filter(Boolean).join(" ").replaceAll(" ,", ","));
  node.setAttribute("aria-selected", cell === state.chosen);
}

// The digits that a cell could be but for the answer, with their probabilities, likeliest first.
function others(cell) {
  const { answer, shares } = state.steps[state.at - 1];
  return shares[cell].map((share, token) => [digitOf(token), share])
    .filter(([digit]) => digit && digit !== answer[cell]).sort((a, b) => b[1] - a[1]);
}

function describeCell(cell) {
  let words = "";
  if (cell >= 0 && isGiven(cell)) words = "given";
  else if (cell >= 0 && state.at) {
    const { answer, sure } = state.steps[state.at - 1];
    const rest = others(cell).filter(([, share]) => share >= .01).slice(0, 3).map(([digit, share]) => `${digit}: ${percent(share)}`);
    words = [`${answer[cell] || "empty"}: ${percent(sure[cell])}`, ...rest].join(" · ");
  }
  $("cell").textContent = cell < 0 ? "Point at a cell to see what else the network considers." : `Row ${Math.floor(cell / size) + 1}, column ${cell % size + 1}${words && " — "}${words}`;
}

function showStatus(board, earlier, step) {
  const { at, wanted, clues, steps } = state, halt = haltStep();
  const changed = board.filter((digit, cell) => digit !== earlier[cell]).length;
  const filled = board.filter((digit, cell) => digit && !clues[cell]).length;
  $("where").textContent = at ? `Step ${at} of ${wanted}` : "The puzzle";
  $("halt").hidden = !(at && halt && at >= halt);
  $("halt").textContent = at === halt ? "here it stops" : "past the point where it stops";
  $("halt").classList.toggle("past", at > halt);
  $("changes").textContent = !at ? `${plural(clues.filter(Boolean).length, "given digit")}, ${plural(clues.filter(digit => !digit).length, "cell")} to fill`
    : at === 1 ? `Fills ${plural(filled, "cell")} at once` : changed ? `Changes ${plural(changed, "cell")}` : "Changes nothing";
  $("sure").textContent = step ? percent(step.confidence) : "–";
  $("sure-words").textContent = step ? "sure that the whole board is right" : "how sure it is of the whole board";
  $("sure-bar").style.width = step ? `${100 * step.confidence}%` : 0;
  const [kind, words] = verdict(board);
  $("verdict").className = kind;
  $("verdict").textContent = words;
  $("board").classList.toggle("solved", kind === "good");
  $("board").setAttribute("aria-busy", steps.length < wanted);
}

// Whether a board obeys the rules, and how far it is from the solution, if there is just one.
function verdict(board) {
  if (!state.at) return ["muted", "Press play, and see what the network makes of it."];
  const problems = rules.violations(state.clues, board);
  if (!problems.length) return ["good", "✓ Solved: every row, column and box holds each digit once, and the given digits are kept."];
  const { found, complete } = state.known, shown = problems.slice(0, 2).join("; ");
  const more = problems.length > 2 ? `; and ${problems.length - 2} more` : "";
  let off = "";
  if (complete && found.length === 1) off = ` ${plural(board.filter((digit, cell) => digit !== found[0][cell]).length, "cell")} wrong.`;
  return ["bad", `✗ Not solved: ${shown}${more}.${off}`];
}

function showPlayer(wanted, steps) {
  const halt = haltStep(), bars = $("bars");
  if (bars.children.length !== wanted + 1) {
    bars.replaceChildren(...Array.from({ length: wanted + 1 }, (_, at) => make("i", { onclick: () => go(at) })));
  }
  [...bars.children].forEach((bar, at) => {
    bar.className = [at === state.at && "now", halt && at > halt && "past", halt && at === halt && "halt"].filter(Boolean).join(" ");
    bar.style.setProperty("--share", at && steps[at - 1] ? steps[at - 1].confidence : 0);
  });
  // A bar stands above the thumb's place: both ends of the range are half a bar from the edges.
  const slider = $("step"), inset = `max(0px, calc(50% / ${wanted + 1} - 8px))`;
  Object.assign(slider, { max: wanted, value: state.at });
  slider.style.width = `calc(100% - 2 * ${inset})`;
  slider.style.marginLeft = inset;
  slider.setAttribute("aria-valuetext", state.at ? `step ${state.at} of ${wanted}` : "the puzzle");
  $("play").setAttribute("aria-label", state.playing ? "Pause" : "Play");
  $("play-icon").setAttribute("d", state.playing ? "M3 2h3.6v12H3zM9.4 2H13v12H9.4z" : "M3.5 1.5v13l10-6.5z");
  $("back").disabled = state.at === 0;
  $("forward").disabled = state.at >= steps.length;
}

// What is to be said of a puzzle that is not one with a single solution.
function showNotice() {
  const { clues, known } = state, double = rules.repeated(clues);
  let words = "";
  if (double.length) {
    const { unit, digit } = double[0];
    words = `This cannot be solved: ${unit} already has the ${digit} more than once. The network tries all the same.`;
  } else if (!clues.some(Boolean)) words = "The board is empty, so that any complete board would be right. Give it some digits.";
  else if (!known.complete) words = "Whether this has just one solution takes too long to find out here.";
  else if (!known.found.length) words = "This puzzle has no solution: no way to fill it in obeys the rules. The network tries all the same.";
  else if (known.found.length > 1) words = "This puzzle has more than one solution. The network has only seen puzzles with one and may mix them.";
  $("notice").textContent = words;
  $("notice").hidden = !words;
}

// ---------- Entering a puzzle ----------

function choose(cell) {
  const before = state.chosen;
  state.chosen = cell;
  for (const node of [before, cell].filter(each => each >= 0).map(each => cellNodes[each])) {
    const mine = node === cellNodes[cell];
    node.tabIndex = mine ? 0 : -1;
    node.classList.toggle("chosen", mine);
    node.setAttribute("aria-selected", mine);
  }
  cellNodes[0].tabIndex = cell <= 0 ? 0 : -1;
  describeCell(cell);
}

function enter(digit) {
  if (state.chosen < 0 || digit > size) return;
  if (state.clues[state.chosen] === digit) return;
  take(state.clues.map((clue, cell) => cell === state.chosen ? digit : clue));
}

function readText(text) {
  const { board, error } = rules.parse(text);
  $("text-error").textContent = error ?? "";
  if (board) take(board);
  return !error;
}

function onKey(event) {
  const inField = event.target.matches("input, select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey || inField) return;
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  if (event.shiftKey && /^Arrow(Left|Right)$/.test(event.key)) go(state.at + (event.key === "ArrowRight" ? 1 : -1));
  else if (event.key === " " && !event.target.matches("button")) togglePlay();
  else if (moves[event.key]) {
    const from = Math.max(0, state.chosen), [down, right] = moves[event.key];
    const [row, column] = [Math.floor(from / size) + down, from % size + right];
    if (state.chosen < 0) cellNodes[0].focus();
    else if (row >= 0 && row < size && column >= 0 && column < size) cellNodes[row * size + column].focus();
  } else if (/^[0-9]$/.test(event.key)) enter(Number(event.key));
  else if (["Delete", "Backspace", "."].includes(event.key)) enter(0);
  else return;
  event.preventDefault();
}

function buildControls() {
  $("pad").style.setProperty("--keys", size > 6 ? 5 : size + 1);
  for (let digit = 1; digit <= size; digit++) {
    $("pad").append(make("button", { textContent: digit, onclick: () => enter(digit) }));
  }
  const erase = make("button", { textContent: "⌫", onclick: () => enter(0) });
  erase.setAttribute("aria-label", "Empty the cell");
  $("pad").append(erase);

  const groups = new Map();
  data.puzzles.forEach(({ group, steps }, i) => {
    if (!groups.has(group)) groups.set(group, make("optgroup", { label: group }));
    groups.get(group).append(make("option", { value: String(i), textContent: `Puzzle ${i + 1} · ${steps ? plural(steps, "step") : "never sure"}` }));
  });
  $("puzzles").append(...groups.values(), make("option", { value: "own", textContent: "Your own puzzle" }));
  $("puzzles").onchange = ({ target: { value } }) => value === "own" ? take(Array(cells).fill(0)) : pick(Number(value));
  const count = data.puzzles.length, now = () => Number($("puzzles").value);
  for (const button of [$("previous-puzzle"), $("next-puzzle")]) button.disabled = !count;
  $("previous-puzzle").onclick = () => pick(((now() || 0) + count - 1) % count);
  $("next-puzzle").onclick = () => pick(Number.isNaN(now()) ? 0 : (now() + 1) % count);

  const trained = data.network.steps;
  for (const steps of new Set([trained, ...[8, 16, 32, 64].filter(more => more > trained)])) {
    $("steps").append(make("option", { value: steps, textContent: steps === trained ? `${steps}, as it was trained` : steps }));
  }
  $("steps").onchange = ({ target }) => {
    state.wanted = Number(target.value);
    state.at = Math.min(state.at, 0);
    think();
    setPlaying(false);
    show();
  };
  $("play").onclick = togglePlay;
  $("back").onclick = () => go(state.at - 1);
  $("forward").onclick = () => go(state.at + 1);
  $("step").oninput = ({ target }) => go(Number(target.value));
  $("clear").onclick = () => take(Array(cells).fill(0));
  $("text").oninput = ({ target }) => readText(target.value);
  $("text").placeholder = `${cells} characters, . for a blank`;
  document.addEventListener("keydown", onKey);
  document.addEventListener("paste", event => {
    const text = event.clipboardData.getData("text");
    if (!event.target.matches("#text")) readText(text);
  });
}

function pick(i) {
  take(rules.parse(data.puzzles[i].text).board, { play: true });
}

function describeModel() {
  const { name, checkpoint, parameters, blocks, trained, accuracy } = data.model, share = (part, of) => `${(100 * part / of).toFixed(1)} %`;
  $("trained").textContent = `${trained.toLocaleString("en")} ${data.title}s with their solutions`;
  $("model").textContent = `This is a ${name} with ${parameters.toLocaleString("en")} parameters in ${plural(blocks, "block")} of width ${data.network.hidden}, ` +
    `kept here in 16 bits each (${checkpoint}). Of ${plural(accuracy.puzzles, "puzzle")} that it had never seen it solves ${share(accuracy.right, accuracy.puzzles)} where it stops, ` +
    `after ${accuracy.steps} steps on average, and ${share(accuracy.rightAtEnd, accuracy.puzzles)} after all ${data.network.steps}.`;
}

// What stands behind # in the address.
function addressed() {
  const text = location.hash.slice(1);
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

// Take the puzzle in the address; of a text that is none, say why. -> whether there is one
function openAddress() {
  const text = addressed(), { board, error } = rules.parse(text);
  if (board) take(board, { play: true });
  $("text-error").textContent = text && error ? error : "";
  return Boolean(board);
}

buildBoard();
buildControls();
describeModel();
if (!openAddress()) {
  const said = $("text-error").textContent;
  if (data.puzzles.length) pick(0);
  else take(Array(cells).fill(0));
  $("text-error").textContent = said;
}
window.addEventListener("hashchange", openAddress);
