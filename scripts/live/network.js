// The forward pass of models/token_network.py in evaluation, for one puzzle and in float32. It knows no architecture: a
// reasoning step is the list of updates that the page brings with it (scripts/build_live_page.py), each of which sends
// the sum of some states, and of the embedded puzzle x, through a stack of blocks.
//
// S positions (those of a puzzle's embedding, then the cells) of width D. Every state and buffer is (S, D), row-major
// on the kernels' heap, with rows of zeros or leftovers up to a multiple of 4, which nothing reads.

function createNetwork(spec, weights, kind) {
  const heap = createKernels(kind);
  const { positions: S, prefix: P, hidden: D } = spec;
  const net = { ...spec, heap, S, P, D, headSize: D / spec.heads, rows: padded(S, ROWS), columns: padded(S, COLUMNS) };
  Object.assign(net, readWeights(spec, createReader(spec.tensors, weights, heap)));
  if (spec.rope) [net.cosines, net.sines] = rotations(S, net.headSize, spec.rope);
  Object.assign(net, makeBuffers(net));
  net.f = heap.floats;  // nothing is allocated from here on
  return { start: puzzle => setStates(net, puzzle), step: () => reason(net), kind: heap.kind };
}

// ---------- Weights ----------

// Tensors by name: as numbers, or on the heap as one side of a product.
function createReader(tensors, weights, heap) {
  const known = new Map(tensors.map(tensor => [tensor.name, tensor]));
  const read = name => {
    const { at, shape } = known.get(name);
    return unpacked(weights, at, shape.length === 1 ? 1 : shape[0], shape.reduce((product, length) => product * length, 1));
  };
  const place = (values, count) => {
    const address = heap.allocate(count);
    heap.floats.set(values, address);
    return address;
  };
  // A weight (out, in) as B of a product, panels of eight outputs.
  const right = name => {
    const [outputs, inputs] = known.get(name).shape, values = read(name);
    const panels = new Float32Array(padded(outputs, COLUMNS) * inputs);
    for (let o = 0; o < outputs; o++) {
      for (let i = 0; i < inputs; i++) {
        panels[(o >> 3) * COLUMNS * inputs + i * COLUMNS + (o & 7)] = values[o * inputs + i];
      }
    }
    return { address: place(panels, panels.length), inputs, outputs: padded(outputs, COLUMNS) };
  };
  // A weight (out, in) as A of a product.
  const left = name => {
    const [outputs, inputs] = known.get(name).shape;
    return { address: place(read(name), padded(outputs, ROWS) * inputs), inputs, outputs: padded(outputs, ROWS) };
  };
  return { read, right, left };
}

function readWeights(spec, reader) {
  const { read, right } = reader, named = (table, make) =>
    Object.fromEntries(Object.entries(table).map(([name, value]) => [name, make(value, name)]));
  return {
    stacks: named(spec.stacks, (blocks, name) => blocks.map((block, i) => readBlock(block, `${name}.${i}.`, reader))),
    head: right("lm_head.weight"),
    qWeight: read("q_head.weight"),
    qBias: read("q_head.bias"),
    tokens: read("embed_tokens.embedding_weight"),
    places: spec.learned ? read("embed_pos.embedding_weight") : null,
    before: spec.prefix ? read("prefix") : null,  // the puzzle's embedding, padded to (P, D)
    starts: named(spec.starts, read),
  };
}

function readBlock({ convolves, mixes }, own, { read, right, left }) {
  const mlp = { up: right(own + "mlp.gate_up_proj.weight"), down: right(own + "mlp.down_proj.weight") };
  if (convolves) {
    mlp.kernel = read(own + "mlp.dwconv.weight");  // (width, 1, 2): of the position before, and of this one
    mlp.bias = read(own + "mlp.dwconv.bias");
  }
  if (mixes) {
    return { mlp, across: { up: left(own + "mlp_t.gate_up_proj.weight"), down: left(own + "mlp_t.down_proj.weight") } };
  }
  return { mlp, qkv: right(own + "self_attn.qkv_proj.weight"), output: right(own + "self_attn.o_proj.weight") };
}

// ---------- Buffers ----------

// Addresses on the heap. What a network has no use for is not there.
function makeBuffers({ heap, stacks, starts, head, rows, columns, D, headSize }) {
  const buffer = (...shape) => heap.allocate(shape.reduce((product, length) => product * length, 1));
  const all = Object.values(stacks).flat();
  const widest = Math.max(...all.map(({ mlp, across }) => Math.max(rows * mlp.up.outputs, across ? across.up.outputs * D : 0)));
  const buffers = {
    states: Object.fromEntries(["x", ...Object.keys(starts)].map(name => [name, buffer(rows, D)])),
    z: buffer(rows, D),
    y: buffer(rows, D),
    wide: buffer(widest),
    gated: buffer(widest / 2),
    logits: buffer(rows, head.outputs),
    sums: new Float64Array(D),
  };
  if (all.some(({ mlp }) => mlp.kernel)) {
    buffers.mixed = buffer(widest / 2);
    buffers.ones = buffer(widest / 2);
    heap.floats.fill(1, buffers.ones, buffers.ones + widest / 2);
  }
  if (all.some(block => block.qkv)) {
    buffers.qkv = buffer(rows, 3 * D);
    buffers.keys = buffer(columns, headSize);
    buffers.scores = buffer(rows, columns);
    buffers.attended = buffer(rows, D);
  }
  return buffers;
}

// ---------- A block ----------

function runBlock(net, block) {
  if (block.across) {
    swigluAcross(net, block.across);
    addAndNormaliseAcross(net);
  } else {
    attention(net, block);
    addAndNormalise(net);
  }
  swiglu(net, block.mlp);
  addAndNormalise(net);
}

// z ← norm(z + y), over the width of each position.
function addAndNormalise({ f, z, y, S, D, eps }) {
  for (let row = 0; row < S; row++) {
    let squares = 0;
    const start = row * D;
    for (let i = start; i < start + D; i++) {
      const value = f[z + i] + f[y + i];
      f[z + i] = value;
      squares += value * value;
    }
    const scale = 1 / Math.sqrt(squares / D + eps);
    for (let i = start; i < start + D; i++) f[z + i] *= scale;
  }
}

// The same over the positions, for every channel.
function addAndNormaliseAcross({ f, z, y, sums, S, D, eps }) {
  sums.fill(0);
  for (let row = 0, i = 0; row < S; row++) {
    for (let d = 0; d < D; d++, i++) {
      const value = f[z + i] + f[y + i];
      f[z + i] = value;
      sums[d] += value * value;
    }
  }
  for (let d = 0; d < D; d++) sums[d] = 1 / Math.sqrt(sums[d] / S + eps);
  for (let row = 0, i = 0; row < S; row++) for (let d = 0; d < D; d++, i++) f[z + i] *= sums[d];
}

function linear({ heap, rows }, from, fromRow, weight, to) {
  const { address, inputs, outputs } = weight;
  heap.matmul(from, address, to, rows, outputs, inputs, fromRow, COLUMNS * inputs, COLUMNS, outputs);
}

function swiglu(net, { up, down, kernel, bias }) {
  const { heap, z, y, wide, gated, S, D } = net, width = down.inputs;
  linear(net, z, D, up, wide);
  for (let row = 0; row < S; row++) {
    heap.gate(wide + row * up.outputs, wide + row * up.outputs + width, gated + row * width, width);
  }
  if (kernel) convolve(net, kernel, bias, width);
  linear(net, gated, width, down, y);
}

// Each channel of what is gated with that of the position before, and SiLU.
function convolve({ heap, f, gated, mixed, ones, S }, kernel, bias, width) {
  for (let row = 0; row < S; row++) {
    for (let i = 0, at = gated + row * width; i < width; i++, at++) {
      const earlier = row ? kernel[2 * i] * f[at - width] : 0;
      f[mixed + row * width + i] = earlier + kernel[2 * i + 1] * f[at] + bias[i];
    }
  }
  heap.gate(mixed, ones, gated, S * width);
}

// SwiGLU over the positions: the weight times z, so that nothing is transposed.
function swigluAcross({ heap, z, y, wide, gated, S, D }, { up, down }) {
  const width = down.inputs;
  heap.matmul(up.address, z, wide, up.outputs, D, S, S, COLUMNS, D, D);
  heap.gate(wide, wide + width * D, gated, width * D);
  heap.matmul(down.address, gated, y, down.outputs, D, width, width, COLUMNS, D, D);
}

function attention(net, { qkv: weight, output }) {
  const { heap, f, z, y, qkv, keys, scores, attended, heads, headSize, rows, columns, S, D } = net;
  linear(net, z, D, weight, qkv);
  if (net.cosines) for (let part = 0; part < 2 * heads; part++) rotate(net, qkv + part * headSize);
  const scale = 1 / Math.sqrt(headSize);
  for (let h = 0; h < heads; h++) {
    const [query, key, value] = [0, D, 2 * D].map(part => qkv + part + h * headSize);
    for (let row = 0; row < S; row++) {  // the keys, transposed, in panels
      const to = keys + (row >> 3) * COLUMNS * headSize + (row & 7);
      for (let i = 0; i < headSize; i++) f[to + i * COLUMNS] = f[key + row * 3 * D + i];
    }
    heap.matmul(query, keys, scores, rows, columns, headSize, 3 * D, COLUMNS * headSize, COLUMNS, columns);
    for (let row = 0; row < S; row++) softmax(f, scores + row * columns, S, scale);
    heap.matmul(scores, value, attended + h * headSize, rows, headSize, S, columns, COLUMNS, 3 * D, D);
  }
  linear(net, attended, D, output, y);
}

function rotate({ f, cosines, sines, headSize, S, D }, start) {
  const half = headSize / 2;
  for (let row = 0; row < S; row++) {
    for (let i = 0, at = start + row * 3 * D; i < half; i++, at++) {
      const cos = cosines[row * half + i], sin = sines[row * half + i], a = f[at], b = f[at + half];
      f[at] = a * cos - b * sin;
      f[at + half] = b * cos + a * sin;
    }
  }
}

function softmax(f, start, count, scale) {
  let most = -Infinity, sum = 0;
  for (let i = start; i < start + count; i++) if (f[i] > most) most = f[i];
  for (let i = start; i < start + count; i++) sum += f[i] = Math.exp(scale * (f[i] - most));
  for (let i = start; i < start + count; i++) f[i] /= sum;
}

// ---------- A puzzle ----------

// Embed the puzzle, one token a cell, and set the states to what a sequence starts from.
function setStates({ f, states, starts, tokens, places, before, S, P, D }, puzzle) {
  for (let row = 0; row < S; row++) {
    for (let d = 0; d < D; d++) {
      let value = row < P ? before[row * D + d] : tokens[puzzle[row - P] * D + d];
      if (places) value = .707106781 * (value + places[row * D + d]);
      f[states.x + row * D + d] = Math.sqrt(D) * value;
      for (const [state, values] of Object.entries(starts)) f[states[state] + row * D + d] = values[d];
    }
  }
}

// One reasoning step. -> logits (cells, vocab) of the tokens, and those of Q(halt) and Q(continue).
function reason(net) {
  for (const one of net.updates) update(net, one);
  const { f, states, head, logits, qWeight, qBias, cells, vocab, P, D } = net, answer = states[net.answer];
  linear(net, answer, D, head, logits);
  const found = new Float32Array(cells * vocab);
  for (let cell = 0; cell < cells; cell++) {
    const from = logits + (P + cell) * head.outputs;
    found.set(f.subarray(from, from + vocab), cell * vocab);
  }
  const [halt, goOn] = [0, 1].map(which => {
    let sum = qBias[which];
    for (let d = 0; d < D; d++) sum += qWeight[which * D + d] * f[answer + d];
    return sum;
  });
  return { logits: found, halt, goOn, wantsToHalt: halt > (net.haltsAbove ?? goOn) };
}

function update(net, { state, stack, adds }) {
  const { f, states, z, S, D, damping: share } = net, own = states[state], others = adds.map(name => states[name]);
  for (let i = 0; i < S * D; i++) {
    let sum = 0;
    for (const other of others) sum += f[other + i];
    f[z + i] = f[own + i] + sum;
  }
  for (const block of net.stacks[stack]) runBlock(net, block);
  for (let i = 0; i < S * D; i++) f[own + i] = share === 1 ? f[z + i] : (1 - share) * f[own + i] + share * f[z + i];
}

// A tensor of `count` numbers from the byte `at` on: a float32 for each row, and integers of 16 bits to multiply it with.
function unpacked(weights, at, rows, count) {
  const values = new Float32Array(count), bytes = new DataView(weights), each = count / rows;
  for (let i = 0; i < count; i++) {
    values[i] = bytes.getInt16(at + 4 * rows + 2 * i, true) * bytes.getFloat32(at + 4 * Math.floor(i / each), true);
  }
  return values;
}

// Cosines and sines of the rotary positions, (S, headSize / 2), in float32 as in models/layers.py.
function rotations(S, headSize, base) {
  const half = headSize / 2, angles = new Float32Array(S * half);
  for (let i = 0; i < half; i++) {
    const frequency = Math.fround(base ** -Math.fround(2 * i / headSize));
    for (let row = 0; row < S; row++) angles[row * half + i] = row * frequency;
  }
  return [angles.map(Math.cos), angles.map(Math.sin)];
}
