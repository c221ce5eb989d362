// The forward pass of models/token_network.py in evaluation, for one puzzle and in float32. It knows no architecture: a
// reasoning step is the list of updates that the page brings with it (scripts/build_live_page.py), each of which sends
// the sum of some states, and of the embedded puzzle x, through a stack of blocks.
//
// S positions (those of a puzzle's embedding, then the cells) of width D. Every state and buffer is (S, D), row-major
// on the kernels' heap, with rows of zeros or leftovers up to a multiple of 4, which nothing reads.

function createNetwork(spec, weights, kind) {
  const heap = createKernels(kind);
  const { positions: S, prefix: P, hidden: D, heads, eps, vocab, cells } = spec;
  const rows = padded(S, ROWS), columns = padded(S, COLUMNS);
  const tensors = new Map(spec.tensors.map(tensor => [tensor.name, tensor]));
  const read = name => {
    const { at, shape } = tensors.get(name);
    return unpacked(weights, at, shape.length === 1 ? 1 : shape[0], shape.reduce((product, length) => product * length, 1));
  };
  const shapeOf = name => tensors.get(name).shape;
  const place = values => {
    const address = heap.allocate(values.length);
    heap.floats.set(values, address);
    return address;
  };
  // A weight (out, in) as B of a product, panels of eight outputs.
  const packed = name => {
    const [outputs, inputs] = shapeOf(name), values = read(name);
    const panels = new Float32Array(padded(outputs, COLUMNS) * inputs);
    for (let o = 0; o < outputs; o++) {
      for (let i = 0; i < inputs; i++) {
        panels[(o >> 3) * COLUMNS * inputs + i * COLUMNS + (o & 7)] = values[o * inputs + i];
      }
    }
    return { address: place(panels), inputs, outputs: padded(outputs, COLUMNS) };
  };
  // A weight (out, in) as A of a product.
  const padRows = name => {
    const [outputs, inputs] = shapeOf(name), address = heap.allocate(padded(outputs, ROWS) * inputs);
    heap.floats.set(read(name), address);
    return { address, inputs, outputs: padded(outputs, ROWS) };
  };

  // ---------- Weights ----------

  const stacks = Object.fromEntries(Object.entries(spec.stacks).map(([name, blocks]) => [name, blocks.map((block, i) => {
    const own = `${name}.${i}.`;
    const mlp = { up: packed(own + "mlp.gate_up_proj.weight"), down: packed(own + "mlp.down_proj.weight") };
    if (block.convolves) {
      mlp.kernel = read(own + "mlp.dwconv.weight");  // (width, 1, 2): of the position before, and of this one
      mlp.bias = read(own + "mlp.dwconv.bias");
    }
    if (block.mixes) {
      return { mlp, across: { up: padRows(own + "mlp_t.gate_up_proj.weight"), down: padRows(own + "mlp_t.down_proj.weight") } };
    }
    return { mlp, qkv: packed(own + "self_attn.qkv_proj.weight"), output: packed(own + "self_attn.o_proj.weight") };
  })]));
  const head = packed("lm_head.weight"), qWeight = read("q_head.weight"), qBias = read("q_head.bias");
  const tokens = read("embed_tokens.embedding_weight");
  const places = spec.learned ? read("embed_pos.embedding_weight") : null;
  const before = P ? read("prefix") : null;  // the puzzle's embedding, padded to (P, D)
  const starts = Object.fromEntries(Object.entries(spec.starts).map(([state, name]) => [state, read(name)]));
  const headSize = D / heads, [cosines, sines] = spec.rope ? rotations(S, headSize, spec.rope) : [];

  // ---------- Buffers ----------

  const buffer = (...shape) => heap.allocate(shape.reduce((product, length) => product * length, 1));
  const states = Object.fromEntries(["x", ...Object.keys(starts)].map(name => [name, buffer(rows, D)]));
  const all = Object.values(stacks).flat();
  const widest = Math.max(...all.map(({ mlp, across }) => Math.max(rows * mlp.up.outputs, across ? across.up.outputs * D : 0)));
  const z = buffer(rows, D), y = buffer(rows, D), wide = buffer(widest), gated = buffer(widest / 2);
  const attends = all.some(block => block.qkv), convolves = all.some(({ mlp }) => mlp.kernel);
  const ones = convolves ? place(new Float32Array(widest / 2).fill(1)) : 0;
  const mixed = convolves ? buffer(widest / 2) : 0;
  const [qkv, keys, scores, attended] =
    attends ? [buffer(rows, 3 * D), buffer(columns, headSize), buffer(rows, columns), buffer(rows, D)] : [];
  const logits = buffer(rows, head.outputs), sums = new Float64Array(D);
  const f = heap.floats;  // nothing is allocated from here on

  const linear = (from, fromRow, weight, to) =>
    heap.matmul(from, weight.address, to, rows, weight.outputs, weight.inputs, fromRow, COLUMNS * weight.inputs, COLUMNS, weight.outputs);

  // ---------- A block ----------

  // z ← norm(z + y), over the width of each position.
  function addAndNormalise() {
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
  function addAndNormaliseAcross() {
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

  function swiglu({ up, down, kernel, bias }) {
    const width = down.inputs;
    linear(z, D, up, wide);
    for (let row = 0; row < S; row++) {
      heap.gate(wide + row * up.outputs, wide + row * up.outputs + width, gated + row * width, width);
    }
    if (kernel) {
      for (let row = 0; row < S; row++) {
        for (let i = 0, at = gated + row * width; i < width; i++, at++) {
          const earlier = row ? kernel[2 * i] * f[at - width] : 0;
          f[mixed + row * width + i] = earlier + kernel[2 * i + 1] * f[at] + bias[i];
        }
      }
      heap.gate(mixed, ones, gated, S * width);
    }
    linear(gated, width, down, y);
  }

  // SwiGLU over the positions: the weight times z, so that nothing is transposed.
  function swigluAcross({ up, down }) {
    const width = down.inputs;
    heap.matmul(up.address, z, wide, up.outputs, D, S, S, COLUMNS, D, D);
    heap.gate(wide, wide + width * D, gated, width * D);
    heap.matmul(down.address, gated, y, down.outputs, D, width, width, COLUMNS, D, D);
  }

  function attention({ qkv: weight, output }) {
    linear(z, D, weight, qkv);
    if (cosines) for (let part = 0; part < 2 * heads; part++) rotate(qkv + part * headSize);
    const scale = 1 / Math.sqrt(headSize);
    for (let h = 0; h < heads; h++) {
      const [query, key, value] = [0, D, 2 * D].map(part => qkv + part + h * headSize);
      for (let row = 0; row < S; row++) {  // the keys, transposed, in panels
        const to = keys + (row >> 3) * COLUMNS * headSize + (row & 7);
        for (let i = 0; i < headSize; i++) f[to + i * COLUMNS] = f[key + row * 3 * D + i];
      }
      heap.matmul(query, keys, scores, rows, columns, headSize, 3 * D, COLUMNS * headSize, COLUMNS, columns);
      for (let row = 0; row < S; row++) softmax(scores + row * columns, scale);
      heap.matmul(scores, value, attended + h * headSize, rows, headSize, S, columns, COLUMNS, 3 * D, D);
    }
    linear(attended, D, output, y);
  }

  function rotate(start) {
    const half = headSize / 2;
    for (let row = 0; row < S; row++) {
      for (let i = 0, at = start + row * 3 * D; i < half; i++, at++) {
        const cos = cosines[row * half + i], sin = sines[row * half + i], a = f[at], b = f[at + half];
        f[at] = a * cos - b * sin;
        f[at + half] = b * cos + a * sin;
      }
    }
  }

  function softmax(start, scale) {
    let most = -Infinity, sum = 0;
    for (let i = start; i < start + S; i++) if (f[i] > most) most = f[i];
    for (let i = start; i < start + S; i++) sum += f[i] = Math.exp(scale * (f[i] - most));
    for (let i = start; i < start + S; i++) f[i] /= sum;
  }

  function runBlock(block) {
    if (block.across) {
      swigluAcross(block.across);
      addAndNormaliseAcross();
    } else {
      attention(block);
      addAndNormalise();
    }
    swiglu(block.mlp);
    addAndNormalise();
  }

  // ---------- A puzzle ----------

  // Embed the puzzle, one token a cell, and set the states to what a sequence starts from.
  function start(puzzle) {
    for (let row = 0; row < S; row++) {
      for (let d = 0; d < D; d++) {
        let value = row < P ? before[row * D + d] : tokens[puzzle[row - P] * D + d];
        if (places) value = .707106781 * (value + places[row * D + d]);
        f[states.x + row * D + d] = Math.sqrt(D) * value;
        for (const [state, values] of Object.entries(starts)) f[states[state] + row * D + d] = values[d];
      }
    }
  }

  function update({ state, stack, adds }) {
    const own = states[state], others = adds.map(name => states[name]);
    for (let i = 0; i < S * D; i++) {
      let sum = 0;
      for (const other of others) sum += f[other + i];
      f[z + i] = f[own + i] + sum;
    }
    stacks[stack].forEach(runBlock);
    const share = spec.damping;
    for (let i = 0; i < S * D; i++) f[own + i] = share === 1 ? f[z + i] : (1 - share) * f[own + i] + share * f[z + i];
  }

  // One reasoning step. -> logits (cells, vocab) of the tokens, and those of Q(halt) and Q(continue).
  function step() {
    spec.updates.forEach(update);
    const answer = states[spec.answer];
    linear(answer, D, head, logits);
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
    return { logits: found, halt, goOn, wantsToHalt: halt > (spec.haltsAbove ?? goOn) };
  }

  return { start, step, kind: heap.kind };
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
