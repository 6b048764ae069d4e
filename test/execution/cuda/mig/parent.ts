/** A program that opens a worker, says its process id, and either waits to be killed or comes to its end. */

import { MigWorker } from "../../../../src/execution/cuda/mig/pool.ts";

const instance = {
  uuid: "MIG-orphan",
  gpu: 0,
  gpuInstance: 1,
  computeInstance: 0,
  profile: "1g.18gb",
  computeUnits: null,
  memoryBytes: null,
};
const worker = await MigWorker.open(instance, "cpu");
console.log(worker.pid);
if (process.argv[2] === "wait") setInterval(() => undefined, 1000);
