/**
 * A checkpoint directory as the hub lays it out: config.json beside one
 * model.safetensors, or beside model.safetensors.index.json and the shards it lists.
 *
 * To the rest it is one flat set of named tensors. A shard is opened when the first
 * of its tensors is asked for, and of a shard only the header and the tensors asked
 * for are read; so one layer costs one layer's bytes, however large the model.
 */

import { access, readdir } from "node:fs/promises";
import { isAbsolute, join, normalize, sep } from "node:path";
import { quote } from "../errors/wording.ts";
import { CheckpointError, DisposedError } from "../errors.ts";
import type { Tensor } from "../tensor.ts";
import { ModelConfig } from "./config.ts";
import { isRecord, readJsonObject } from "./json.ts";
import type { TensorInfo } from "./safetensors/header.ts";
import { SafetensorsFile } from "./safetensors/reader.ts";
import { type OpenSource, openFile, unreadable } from "./safetensors/source.ts";

const CONFIG_FILE = "config.json";
const SINGLE_FILE = "model.safetensors";
const INDEX_FILE = "model.safetensors.index.json";

/** A tensor's description and the file it is in. */
export interface LocatedTensor extends TensorInfo {
  readonly file: string;
}

export class Checkpoint implements AsyncDisposable {
  readonly directory: string;
  readonly config: ModelConfig;
  /** File that lists the tensors: the index, or the single file. */
  readonly listing: string;
  /** Names of all tensors. */
  readonly names: ReadonlySet<string>;
  /** Paths of all files of the checkpoint: its config, the list of tensors, every shard. */
  readonly files: readonly string[];
  /** File name of every tensor's shard, by tensor name. */
  readonly #shardOf: ReadonlyMap<string, string>;
  readonly #open: OpenSource;
  readonly #shards = new Map<string, Promise<SafetensorsFile>>();
  #closed = false;

  private constructor(
    directory: string,
    config: ModelConfig,
    listing: string,
    shardOf: ReadonlyMap<string, string>,
    openSource: OpenSource,
  ) {
    this.directory = directory;
    this.config = config;
    this.listing = join(directory, listing);
    this.names = new Set(shardOf.keys());
    const files = new Set([CONFIG_FILE, listing, ...shardOf.values()]);
    this.files = Array.from(files, (file) => join(directory, file));
    this.#shardOf = shardOf;
    this.#open = openSource;
  }

  /**
   * Reads config.json and the list of tensors.
   *
   * @throws CheckpointError `missing-file`, `bad-config`, or what a damaged single file gives (SafetensorsFile.open)
   */
  static async open(directory: string, openSource: OpenSource = openFile): Promise<Checkpoint> {
    const config = await ModelConfig.read(join(directory, CONFIG_FILE));
    if (await exists(join(directory, SINGLE_FILE))) {
      const file = await SafetensorsFile.open(join(directory, SINGLE_FILE), openSource);
      const shardOf = new Map([...file.tensors.keys()].map((name) => [name, SINGLE_FILE]));
      const checkpoint = new Checkpoint(directory, config, SINGLE_FILE, shardOf, openSource);
      checkpoint.#shards.set(SINGLE_FILE, Promise.resolve(file));
      return checkpoint;
    }
    if (await exists(join(directory, INDEX_FILE))) {
      const shardOf = await readIndex(join(directory, INDEX_FILE));
      return new Checkpoint(directory, config, INDEX_FILE, shardOf, openSource);
    }
    throw await noWeights(directory);
  }

  /**
   * Looks a tensor up, opening its shard if need be; reads none of its data.
   *
   * @throws CheckpointError `missing-tensor`, `missing-file` for its shard, or what a damaged shard gives
   */
  async info(name: string): Promise<LocatedTensor> {
    const file = await this.#fileOf(name);
    return { ...file.info(name), file: file.path };
  }

  /** Reads a whole tensor. @throws CheckpointError as `info` and SafetensorsFile.read do */
  async read(name: string): Promise<Tensor> {
    return (await this.#fileOf(name)).read(name);
  }

  /** Reads `tensor[index]`, and only its bytes. @throws CheckpointError as `info` and SafetensorsFile.readSlice do */
  async readSlice(name: string, index: number): Promise<Tensor> {
    return (await this.#fileOf(name)).readSlice(name, index);
  }

  async #fileOf(name: string): Promise<SafetensorsFile> {
    if (this.#closed) throw new DisposedError(`Checkpoint ${this.directory}`);
    const shard = this.#shardOf.get(name);
    if (shard === undefined) {
      throw new CheckpointError(
        "missing-tensor",
        this.listing,
        "is not in the checkpoint. Check that config.json and the weights belong together.",
        name,
      );
    }
    let file = this.#shards.get(shard);
    if (file === undefined) {
      file = SafetensorsFile.open(join(this.directory, shard), this.#open);
      this.#shards.set(shard, file);
    }
    return file;
  }

  /** Closes every open shard; closing twice is fine. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    const opened = await Promise.allSettled(this.#shards.values());
    for (const shard of opened) {
      if (shard.status === "fulfilled") await shard.value[Symbol.asyncDispose]();
    }
  }
}

async function readIndex(file: string): Promise<ReadonlyMap<string, string>> {
  const { weight_map: weightMap } = await readJsonObject(file);
  if (!isRecord(weightMap)) {
    throw new CheckpointError("bad-config", file, `has no "weight_map" object.`);
  }
  const shardOf = new Map<string, string>();
  for (const [name, shard] of Object.entries(weightMap)) {
    if (typeof shard !== "string" || !isInside(shard)) {
      throw new CheckpointError(
        "bad-config",
        file,
        `is said to be in ${quote(shard)}, which is not a file inside the checkpoint's directory.`,
        name,
      );
    }
    shardOf.set(name, shard);
  }
  return shardOf;
}

/** Whether a relative path stays in its directory; a download must not be able to name any other file. */
function isInside(path: string): boolean {
  const [first] = normalize(path).split(sep);
  return !isAbsolute(path) && !path.includes("\0") && first !== ".." && first !== ".";
}

async function exists(path: string): Promise<boolean> {
  try {
    await access(path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return false;
    throw unreadable(path, error);
  }
}

async function noWeights(directory: string): Promise<CheckpointError> {
  const files = await readdir(directory).catch(() => []);
  const pickled = files.find((file) => /\.(bin|pt|pth)$/.test(file));
  return new CheckpointError(
    "missing-file",
    join(directory, SINGLE_FILE),
    pickled === undefined
      ? `does not exist, and neither does ${INDEX_FILE}. Download the checkpoint's weights beside its config.json.`
      : `does not exist, only ${quote(pickled)}. Save the model with safe_serialization=True; pickled weights are not read.`,
  );
}
