/**
 * Steps of a layer that differ in their routing, to be replayed in turn: a step must not find its experts in the cache
 * because the one before has left them there. Buffers and a graph for each; what times them is bars.mjs and steps.mjs.
 */

/** Enough that their experts together are several times the cache. */
const routingsFor = (tokens) => (tokens <= 4 ? 16 : tokens <= 64 ? 4 : 2);

/** How far a token's logit of the hot expert is ahead of its others, as in ../peers/layer.py. */
const HOT_LEAD = 0.5;

/**
 * Adds them to `steps`, one by one, so that the caller can dispose of them if one fails.
 *
 * @param support what a build's support.mjs exports
 * @param streams that all share
 * @param cell { tokens, routing }
 * @param hidden the hidden states of all
 */
export async function addSteps(
  steps,
  support,
  layer,
  streams,
  { tokens, routing },
  hidden,
  random,
) {
  const { BareStep, oneLane } = support;
  const { experts } = layer.spec.router;
  for (let i = 0; i < routingsFor(tokens); i++) {
    const logits = drawLogits(support, routing, tokens, experts, random);
    const options = { tokens, fromLogits: true, outputType: "bfloat16", streams };
    const step = new BareStep(layer, oneLane(layer), options);
    steps.push({ step, logits });
    await step.write(hidden);
    step.writeLogits(logits);
  }
}

/** Random logits, a tensor [tokens, experts]; with "hot" uniform ones but for an expert that all tokens choose first. */
export function drawLogits(
  { ExpertPopularity, makeLogits, parseSkew },
  routing,
  tokens,
  experts,
  random,
) {
  const hot = routing === "hot";
  const skew = parseSkew(hot ? "uniform" : routing);
  const popularity = ExpertPopularity.draw(skew, experts, random);
  const logits = makeLogits(popularity, tokens, random);
  if (!hot) return logits;
  const [expert] = popularity.ranking;
  for (let token = 0; token < tokens; token++) {
    const row = logits.data.subarray(token * experts, (token + 1) * experts);
    row[expert] = Number.NEGATIVE_INFINITY;
    row[expert] = Math.max(...row) + HOT_LEAD;
  }
  return logits;
}
