// The arithmetic that takes the time: matrix products and the gate of a SwiGLU, on one heap of float32.
//
// A browser with WebAssembly SIMD runs them as a module of about 1,000 bytes that is assembled here, with fused
// multiply-adds where it has them (relaxed SIMD); another one runs the same loops in plain JavaScript. Addresses and
// strides are in floats. A matrix product is
//
//   C (rows × columns) = A (rows × depth) · B (depth × columns)
//
// with rows in multiples of 4 and columns in multiples of 8: what is stored is padded, and A and C are row-major with
// their own strides. Eight columns of B are a panel; element (k, 8 p + c) is at b + p · bPanel + k · bRow + c. So a
// weight, which never changes, is packed panel after panel (bPanel = 8 depth, bRow = 8), and activations stay as they
// are (bPanel = 8, bRow = their stride).

const ROWS = 4, COLUMNS = 8;
const padded = (count, multiple) => Math.ceil(count / multiple) * multiple;

// `kind` is "relaxed", "simd" or "plain"; by default the fastest that this browser has.
function createKernels(kind = fastestKernels()) {
  let memory = null, used = 4;  // address 0 stays free, for what is not there
  const heap = { kind, floats: new Float32Array(0) };
  if (kind === "plain") {
    heap.matmul = (...args) => plainMatmul(heap.floats, ...args);
    heap.gate = (...args) => plainGate(heap.floats, ...args);
  } else {
    memory = new WebAssembly.Memory({ initial: 1 });
    const module = new WebAssembly.Module(assembleKernels(kind === "relaxed"));
    const { matmul, gate } = new WebAssembly.Instance(module, { heap: { memory } }).exports;
    heap.matmul = (a, b, c, rows, columns, depth, aRow, bPanel, bRow, cRow) =>
      matmul(4 * a, 4 * b, 4 * c, rows, columns, depth, 4 * aRow, 4 * bPanel, 4 * bRow, 4 * cRow);
    heap.gate = (gate_, up, out, count) => gate(4 * gate_, 4 * up, 4 * out, count);
  }
  // The address of `count` new floats, all 0. `floats` is another array afterwards.
  heap.allocate = count => {
    const address = used;
    used += padded(count, 4);  // 16 bytes: what SIMD loads fastest
    if (memory) {
      const pages = Math.ceil(4 * used / 65536) - memory.buffer.byteLength / 65536;
      if (pages > 0) memory.grow(pages);
      heap.floats = new Float32Array(memory.buffer);
    } else if (used > heap.floats.length) {
      const larger = new Float32Array(2 * used);
      larger.set(heap.floats);
      heap.floats = larger;
    }
    return address;
  };
  return heap;
}

function fastestKernels() {
  if (typeof WebAssembly !== "object") return "plain";
  for (const kind of ["relaxed", "simd"]) {
    try {
      new WebAssembly.Module(assembleKernels(kind === "relaxed"));
      return kind;
    } catch { /* not known here, or forbidden by the page's host */ }
  }
  return "plain";
}

function plainMatmul(f, a, b, c, rows, columns, depth, aRow, bPanel, bRow, cRow) {
  for (let column = 0; column < columns; column += 4) {  // half a panel: 8 sums fit the registers
    const panel = b + (column >> 3) * bPanel + (column & 4);
    for (let row = 0; row < rows; row += 2) {
      let s00 = 0, s01 = 0, s02 = 0, s03 = 0, s10 = 0, s11 = 0, s12 = 0, s13 = 0;
      let at = a + row * aRow, from = panel;
      for (let k = 0; k < depth; k++, at++, from += bRow) {
        const a0 = f[at], a1 = f[at + aRow], b0 = f[from], b1 = f[from + 1], b2 = f[from + 2], b3 = f[from + 3];
        s00 += a0 * b0; s01 += a0 * b1; s02 += a0 * b2; s03 += a0 * b3;
        s10 += a1 * b0; s11 += a1 * b1; s12 += a1 * b2; s13 += a1 * b3;
      }
      const to = c + row * cRow + column;
      f[to] = s00; f[to + 1] = s01; f[to + 2] = s02; f[to + 3] = s03;
      f[to + cRow] = s10; f[to + cRow + 1] = s11; f[to + cRow + 2] = s12; f[to + cRow + 3] = s13;
    }
  }
}

// out = gate · sigmoid(gate) · up, for `count` floats in a row.
function plainGate(f, gate, up, out, count) {
  for (let i = 0; i < count; i++) f[out + i] = f[gate + i] / (1 + Math.exp(-f[gate + i])) * f[up + i];
}

// ---------- The module ----------

// The bytes of a WebAssembly module with `matmul` and `gate`, of the arguments above with strides and addresses in
// bytes.
function assembleKernels(relaxed) {
  const code = createInstructions(relaxed);
  return moduleBytes({ matmul: matmulCode(code), gate: gateCode(code) });
}

// Numbers as WebAssembly writes them, without a sign and with one.
function leb(value) {
  const bytes = [];
  do { bytes.push((value & 127) | (value > 127 ? 128 : 0)); value >>>= 7; } while (value);
  return bytes;
}

function signedLeb(value) {
  const bytes = [];
  for (;;) {
    const byte = value & 127;
    value >>= 7;
    if ((value === 0 && !(byte & 64)) || (value === -1 && byte & 64)) return [...bytes, byte];
    bytes.push(byte | 128);
  }
}

// What code is written with: trees in the order of evaluation, in which an operand is a local's number or nested code.
function createInstructions(relaxed) {
  const simd = code => [0xfd, ...leb(code)];
  const code = operand => typeof operand === "number" ? [0x20, ...leb(operand)] : operand;  // local.get
  const apply = (operation, ...operands) => [...operands.flatMap(code), ...operation];
  const set = (local, value) => [...code(value), 0x21, ...leb(local)];
  const int = value => [0x41, ...signedLeb(value)];
  const plus = (a, b) => apply([0x6a], a, b), minus = (a, b) => apply([0x6b], a, b), times = (a, b) => apply([0x6c], a, b);
  const vector = value => {  // four times the same float
    const bytes = new Uint8Array(new Float32Array([value, value, value, value]).buffer);
    return [...simd(12), ...bytes];
  };
  const load = (address, offset = 0) => apply([...simd(0), 2, ...leb(offset)], address);
  const splat = address => apply([...simd(9), 2, 0], address);
  const store = (address, offset, value) => [...code(address), ...code(value), ...simd(11), 2, ...leb(offset)];
  const add = (a, b) => apply(simd(0xe4), a, b), sub = (a, b) => apply(simd(0xe5), a, b);
  const mul = (a, b) => apply(simd(0xe6), a, b), div = (a, b) => apply(simd(0xe7), a, b);
  const fma = (a, b, sum) => relaxed ? apply(simd(0x105), a, b, sum) : add(mul(a, b), sum);
  // Run `body`, then count the local down; until it is 0.
  const countdown = (local, by, body) =>
    [0x03, 0x40, ...body.flat(), ...minus(local, int(by)), 0x22, ...leb(local), 0x0d, 0, 0x0b];
  return { simd, apply, set, int, plus, minus, times, vector, load, splat, store, add, sub, mul, div, fma, countdown };
}

function matmulCode({ countdown, fma, int, load, minus, plus, set, splat, store, times, vector }) {
  const [a, b, c, rows, columns, depth, aRow, bPanel, bRow, cRow] = Array(10).keys();
  const [row, k, from, to] = [10, 11, 12, 13], at = [14, 15, 16, 17];  // i32
  const b0 = 18, b1 = 19, one = 20, sums = Array.from({ length: 8 }, (_, i) => 21 + i);  // v128
  const step = [
    set(b0, load(from)), set(b1, load(from, 16)),
    ...at.flatMap((address, i) => [
      set(one, splat(address)), set(sums[2 * i], fma(one, b0, sums[2 * i])),
      set(sums[2 * i + 1], fma(one, b1, sums[2 * i + 1])), set(address, plus(address, int(4))),
    ]),
    set(from, plus(from, bRow)),
  ];
  const fourRows = [
    ...sums.map(sum => set(sum, vector(0))),
    ...at.slice(1).map((address, i) => set(address, plus(at[i], aRow))),
    set(from, b), set(k, depth), countdown(k, 1, step),  // this leaves at[0] behind the row
    ...[0, 1, 2, 3].flatMap(i => [
      store(to, 0, sums[2 * i]), store(to, 16, sums[2 * i + 1]), set(to, plus(to, cRow)),
    ]),
    set(at[0], plus(minus(at[0], times(depth, int(4))), times(aRow, int(4)))),
  ];
  const panel = [
    set(at[0], a), set(to, c), set(row, rows), countdown(row, 4, fourRows),
    set(b, plus(b, bPanel)), set(c, plus(c, int(32))),
  ];
  return { parameters: 10, ints: 8, vectors: 11, body: countdown(columns, 8, [...panel]) };
}

// e^x = 2^n · e^r with n the nearest integer to x / ln 2, and e^r by Cephes' polynomial: 1e-7 off at most.
function gateCode({ add, apply, countdown, div, fma, int, load, mul, plus, set, simd, store, sub, vector }) {
  const [gate_, up, out, count] = Array(4).keys(), [g, x, n, r] = [4, 5, 6, 7];
  const polynomial = [1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5]
    .map(vector).reduce((sum, next) => fma(sum, r, next));
  const power = apply(simd(0xab), apply(simd(0xae), apply(simd(0xf8), n), [...int(127), ...simd(0x11)]), int(23));
  return {
    parameters: 4, ints: 0, vectors: 4,
    body: countdown(count, 4, [
      set(g, load(gate_)),
      set(x, apply(simd(0xe8), apply(simd(0xe9), sub(vector(0), g), vector(-87)), vector(88))),  // min(max(-g, …), …)
      set(n, apply(simd(0x6a), mul(x, vector(1.44269504088896341)))),
      set(r, fma(n, vector(2.12194440e-4), fma(n, vector(-0.693359375), x))),
      set(r, add(fma(polynomial, mul(r, r), r), vector(1))),
      store(out, 0, mul(div(g, add(vector(1), mul(r, power))), load(up))),
      ...[gate_, up, out].map(address => set(address, plus(address, int(16)))),
    ]),
  };
}

// A module of these functions, whose arguments are all i32, on the memory `heap.memory`.
function moduleBytes(functions) {
  const names = Object.keys(functions), codes = Object.values(functions);
  const text = name => [...leb(name.length), ...[...name].map(letter => letter.charCodeAt(0))];
  const list = entries => [...leb(entries.length), ...entries.flat()];
  const section = (id, content) => [id, ...leb(content.length), ...content];
  return new Uint8Array([
    0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(1, list(codes.map(({ parameters }) => [0x60, ...list(Array(parameters).fill([0x7f])), 0]))),
    ...section(2, list([[...text("heap"), ...text("memory"), 2, 0, 1]])),
    ...section(3, list(codes.map((_, i) => [i]))),
    ...section(7, list(names.map((name, i) => [...text(name), 0, i]))),
    ...section(10, list(codes.map(({ ints, vectors, body }) => {
      const locals = list([[...leb(ints), 0x7f], [...leb(vectors), 0x7b]].filter(([many]) => many));
      const all = [...locals, ...body, 0x0b];
      return [...leb(all.length), ...all];
    }))),
  ]);
}
