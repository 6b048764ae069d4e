/** Runs child.js to its end. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

export const CHILD = fileURLToPath(new URL("child.js", import.meta.url));

export interface Said {
  readonly error?: string;
  readonly code?: string;
  readonly message?: string;
  readonly finite?: boolean;
  readonly kind?: string;
}

interface ChildOptions {
  readonly script?: string;
  readonly env?: NodeJS.ProcessEnv;
}

/** @returns the last thing it said */
export function runChild(does: "open" | "auto", { script = CHILD, env }: ChildOptions = {}): Said {
  const { stdout, stderr, status } = spawnSync(process.execPath, [script, does], {
    encoding: "utf8",
    env: { ...process.env, ...env },
  });
  assert.equal(status, 0, stderr);
  return JSON.parse(stdout.trim().split("\n").at(-1) as string) as Said;
}
