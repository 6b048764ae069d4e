/**
 * A few tokens of a large layer in float64, so that no figure is taken of a wrong
 * result. The experts that these tokens go to get weights that the host knows, written
 * over those that were made on the device.
 */

import { BFLOAT16, referenceRoute } from "./support.mjs";

/** Writes the experts' weights as the host has them. */
export async function makeKnown({ modules, weights }, experts) {
  const [first, second] = modules.parts.experts.products;
  for (const expert of experts) {
    const [up, down] = await weights.expert(expert);
    await first.write(expert, "gate", up.gate);
    await first.write(expert, "value", up.value);
    await second.write(expert, "value", down.value);
  }
}

/** Where the tokens of some rows of logits go: ids and weights, k a token. */
export function routeOf({ spec }, logits, tokens) {
  const { experts, topK, rule } = spec.router;
  const rows = new Float32Array(tokens.length * experts);
  tokens.forEach((token, i) => {
    rows.set(logits.data.subarray(token * experts, (token + 1) * experts), i * experts);
  });
  return referenceRoute(rule, rows, experts, topK);
}

/** Rows [tokens, hidden] of the layer's output in float64. */
export async function referenceRows({ weights, spec }, hidden, tokens, routing) {
  const { hiddenSize, router, experts } = spec;
  const { intermediateSize } = experts;
  const rows = new Float64Array(tokens.length * hiddenSize);
  for (const [i, token] of tokens.entries()) {
    const x = hidden.subarray(token * hiddenSize, (token + 1) * hiddenSize);
    for (let choice = 0; choice < router.topK; choice++) {
      const slot = i * router.topK + choice;
      const [up, down] = await weights.expert(routing.ids[slot]);
      const gates = product(up.gate, x, intermediateSize);
      const inner = product(up.value, x, intermediateSize).map(
        (u, j) => (u * gates[j]) / (1 + Math.exp(-gates[j])),
      );
      product(down.value, inner, hiddenSize).forEach((y, j) => {
        rows[i * hiddenSize + j] += routing.weights[slot] * y;
      });
    }
  }
  return rows;
}

/** matrix x vector, the matrix a contiguous bfloat16 view. */
function product({ data, offset, columns }, vector, outputs) {
  const out = new Float64Array(outputs);
  for (let row = 0; row < outputs; row++) {
    let sum = 0;
    const begin = offset + row * columns;
    for (let i = 0; i < columns; i++) sum += BFLOAT16[data[begin + i]] * vector[i];
    out[row] = sum;
  }
  return out;
}
