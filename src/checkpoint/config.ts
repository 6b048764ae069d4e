/**
 * A checkpoint's config.json: JSON that someone else wrote, turned into checked
 * values one schema at a time. Every family declares the keys it reads and the
 * values an absent key stands for; this file knows no family.
 */

import type { z } from "zod";
import { quote } from "../errors/wording.ts";
import { CheckpointError } from "../errors.ts";
import { isRecord, readJsonObject } from "./json.ts";

/** What the families and the years have called the number of routed experts. Schemas call it `num_experts`. */
const EXPERT_COUNT_KEYS = ["num_experts", "num_local_experts", "n_routed_experts"] as const;

/** The values of a config.json, or of one object inside it. */
export class ModelConfig {
  readonly file: string;
  readonly #values: Readonly<Record<string, unknown>>;
  /** How this file calls `num_experts`. */
  readonly #expertCountKey: string;

  constructor(file: string, values: Readonly<Record<string, unknown>>) {
    this.file = file;
    const key = EXPERT_COUNT_KEYS.find((candidate) => values[candidate] !== undefined);
    this.#expertCountKey = key ?? "num_experts";
    this.#values = key === undefined ? values : { ...values, num_experts: values[key] };
  }

  static async read(file: string): Promise<ModelConfig> {
    return new ModelConfig(file, await readJsonObject(file));
  }

  has(key: string): boolean {
    return this.#values[key] !== undefined && this.#values[key] !== null;
  }

  /** The object under a key as a config of its own; an empty one if the key is absent. @throws CheckpointError `bad-config` */
  nested(key: string): ModelConfig {
    const value = this.#values[key] ?? {};
    if (!isRecord(value)) throw this.error(`"${key}" is not an object.`);
    return new ModelConfig(this.file, value);
  }

  /** The keys a schema names, checked. @throws CheckpointError `bad-config` naming the first key at fault */
  parse<S extends z.ZodType>(schema: S): z.output<S> {
    const result = schema.safeParse(this.#values);
    if (result.success) return result.data;
    const [issue] = result.error.issues;
    const key = String(issue?.path[0]);
    const value = this.#values[key];
    const shown = key === "num_experts" ? this.#expertCountKey : key;
    const what = value === undefined ? "is missing" : `is ${quote(value)}`;
    // zod says "Invalid input: expected string, received number"; what was received is quoted already.
    const expected = issue?.message.replace(/^[^:]*: /, "").replace(/, received .*$/, "");
    throw this.error(`"${shown}" ${what}; ${expected}.`);
  }

  error(message: string): CheckpointError {
    return new CheckpointError("bad-config", this.file, message);
  }
}
