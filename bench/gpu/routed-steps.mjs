/**
 * Steps of a layer that differ in their routing, to be replayed in turn: a step must not find its experts in the cache
 * because the one before has left them there. Buffers and a graph for each; what times them is bars.mjs and steps.mjs.
 */

/** Enough that their experts together are several times the cache. */
const routingsFor = (tokens) => (tokens <= 4 ? 16 : tokens <= 64 ? 4 : 2);

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
  const { BareStep, ExpertPopularity, makeLogits, oneLane, parseSkew } = support;
  const { experts } = layer.spec.router;
  for (let i = 0; i < routingsFor(tokens); i++) {
    const popularity = ExpertPopularity.draw(parseSkew(routing), experts, random);
    const logits = makeLogits(popularity, tokens, random);
    const options = { tokens, fromLogits: true, outputType: "bfloat16", streams };
    const step = new BareStep(layer, oneLane(layer), options);
    steps.push({ step, logits });
    await step.write(hidden);
    step.writeLogits(logits);
  }
}
