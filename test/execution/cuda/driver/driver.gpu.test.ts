/** The driver layer on a real GPU. */

import { openDriver } from "../../../../src/execution/cuda/driver/native-driver.ts";
import { testDriver } from "./driver-contract.ts";

function whyNot(): string | false {
  const opened = openDriver();
  if ("reason" in opened) return `no CUDA: ${opened.reason.replace(/\.$/, "")}`;
  return opened.driver.deviceCount() > 0 ? false : "the driver shows no GPU";
}

const skip = whyNot();
if (skip !== false && process.env["NEXUS_REQUIRE_GPU"] === "1") throw new Error(skip);

testDriver(() => {
  const opened = openDriver();
  if ("reason" in opened) throw new Error(opened.reason);
  return opened.driver;
}, skip);
