/** The hidden states `nexus run` works on: one float tensor of a safetensors file. */

import { SafetensorsFile } from "../../checkpoint/index.ts";
import { shapeText } from "../../errors/wording.ts";
import { CheckpointError } from "../../errors.ts";
import { sizeOf, type Tensor } from "../../tensor.ts";

/** An input file that is open and known to hold what is wanted; nothing but its header has been read. */
export class HiddenInput implements AsyncDisposable {
  readonly tokens: number;
  readonly #file: SafetensorsFile;
  readonly #tensor: string;
  readonly #hiddenSize: number;

  private constructor(file: SafetensorsFile, tensor: string, tokens: number, hiddenSize: number) {
    this.#file = file;
    this.#tensor = tensor;
    this.tokens = tokens;
    this.#hiddenSize = hiddenSize;
  }

  /**
   * Opens a file and checks that it holds [tokens, hidden] or [batch, sequence, hidden].
   *
   * @throws CheckpointError naming the file, and the tensor where it is at fault
   */
  static async open(path: string, tensor: string, hiddenSize: number): Promise<HiddenInput> {
    const file = await SafetensorsFile.open(path);
    try {
      const { shape, dtype } = file.info(tensor);
      const refuse = (fault: "wrong-shape" | "wrong-dtype", message: string): never => {
        throw new CheckpointError(fault, path, message, tensor);
      };
      if (!["F32", "BF16", "F16", "F64"].includes(dtype)) {
        refuse("wrong-dtype", `is ${dtype}; hidden states must be F32, BF16, F16 or F64.`);
      }
      const shown = shapeText(shape);
      if (shape.length !== 2 && shape.length !== 3) {
        const wanted = "[tokens, hidden] or [batch, sequence, hidden]";
        refuse("wrong-shape", `has shape ${shown}; hidden states are ${wanted}.`);
      }
      if (shape.at(-1) !== hiddenSize) {
        refuse("wrong-shape", `has shape ${shown}; the layer's hidden size is ${hiddenSize}.`);
      }
      const tokens = sizeOf(shape.slice(0, -1));
      if (tokens === 0) refuse("wrong-shape", `has shape ${shown}, which is no token at all.`);
      return new HiddenInput(file, tensor, tokens, hiddenSize);
    } catch (error) {
      await file[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Reads the tensor as [tokens, hidden]. */
  async read(): Promise<Tensor> {
    const tensor = await this.#file.read(this.#tensor);
    return { ...tensor, shape: [this.tokens, this.#hiddenSize] };
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#file[Symbol.asyncDispose]();
  }
}
