/**
 * The kernels of the CPU device: what the WebAssembly module exports. The typed
 * face of these functions is src/execution/cpu/kernels.ts.
 *
 * All of them work on addresses in one memory that the host owns and lends to
 * every thread. Nothing here allocates, keeps state or has static data, so any
 * number of threads may run any of them at once on disjoint outputs.
 */

export { fillUniform, toFloat32 } from "./convert";
export { pack, packedBytes, panelOutputs } from "./pack";
export { maxTileRows, project, scratchBytes } from "./project";
export { combine, sum } from "./reduce";
