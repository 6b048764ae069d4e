/**
 * A device that remembers which kernels it has loaded. A kernel is loaded when something is first
 * launched with it, so these are the ones that were chosen, for whatever reasons. Which of the
 * manifest's they are is told by the hashes of the images that the driver was given.
 */

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { openDriver, openOnDriver } from "./support.mjs";

const MANIFEST = new URL("../../kernels/bundle/manifest.json", import.meta.url);

/** @returns { device, loaded: names of kernels } of the first GPU @throws if there is none */
export async function openRemembering() {
  const { driver, reason } = openDriver();
  if (driver === undefined) throw new Error(`There is no CUDA device: ${reason}`);
  const images = rememberImages(driver);
  const device = await openOnDriver(driver);
  return {
    device,
    loaded: () =>
      shipped()
        .filter(({ image }) => images.has(image.sha256))
        .map(({ name }) => name),
  };
}

/** Hashes of what the driver loads from now on: a set that grows. */
export function rememberImages(driver) {
  const images = new Set();
  const load = driver.loadModule.bind(driver);
  driver.loadModule = (image) => {
    images.add(createHash("sha256").update(image).digest("hex"));
    return load(image);
  };
  return images;
}

/** Names of the kernels with this entry and these values of what they select that a device could choose: those of its architecture. */
export function kernelsOf({ properties }, entry, selects) {
  return shipped()
    .filter(({ entry: own, arch }) => own === entry && properties.features.includes(arch))
    .filter(({ selects: own }) =>
      Object.entries(selects).every(([key, value]) => own[key] === value),
    )
    .map(({ name }) => name);
}

function shipped() {
  return JSON.parse(readFileSync(MANIFEST, "utf8")).kernels;
}
