/**
 * The memory that steps work in, filled with NaN and nonsense: everything between hidden states and
 * output, and the output. The gaps between rows are zero by agreement and stay so, and what the host
 * writes stays as it is. A layer keeps its buffers to itself, so each is told by the label that it is
 * allocated with; weights are none of this.
 */

import type { LayerSpec } from "../../src/data/spec.ts";
import { rowWeightsOf } from "../../src/data/step-buffers.ts";
import {
  type Device,
  type DeviceBuffer,
  type RowLayout,
  rowBytes,
} from "../../src/execution/device.ts";
import { BYTES_PER_ELEMENT } from "../../src/tensor.ts";

/** A number that is no expert, no row and no slot. */
export const NONSENSE = 0x3fffffff;
/** NaN in float32, and twice NaN in bfloat16 and float16. */
export const NAN_WORD = 0x7fff7fff;
/** Bytes written at a time. */
const PIECE_BYTES = 4 << 20;

/** What decides how the rows of a step lie. */
export type RowSpec = Pick<LayerSpec, "hiddenSize" | "experts" | "shared">;

/** `host`: the host writes it, or leaves it zero; the last three are rows, by their width. */
type Content = "host" | "indices" | "numbers" | "hidden" | "inner" | "sharedInner";

/** By label, without the number of tokens. */
const CONTENTS: Readonly<Record<string, Content>> = {
  "token count": "host",
  "hidden states": "host",
  "lane table": "host",
  "expert times": "host",
  "selection bias": "host",
  "expert ids": "indices",
  "expert counts": "indices",
  "bucket offsets": "indices",
  "bucket order": "indices",
  "inverse bucket order": "indices",
  "router logits": "numbers",
  "routing weights": "numbers",
  "shared expert gate": "numbers",
  "layer output": "numbers",
  "expert outputs": "hidden",
  "shared expert output": "hidden",
  "expert intermediates": "inner",
  "shared expert intermediates": "sharedInner",
};

/** What steps on a device work in, to be poisoned between two of them. */
export class StepMemory {
  /** Takes down what is allocated on it; otherwise the device. */
  readonly device: Device;
  readonly #rows: RowSpec | undefined;
  /** With what each buffer is filled, over and over. */
  readonly #fillings = new Map<DeviceBuffer, Uint8Array>();

  /** @param rows of the one layer that is made on it; absent: nothing made on it has rows */
  constructor(device: Device, rows?: RowSpec) {
    this.#rows = rows;
    this.device = standIn(device, {
      allocate: (byteLength, label, options) => {
        const buffer = device.allocate(byteLength, label, options);
        const filling = this.#fillingOf(device, buffer);
        if (filling !== undefined) this.#fillings.set(buffer, filling);
        return buffer;
      },
    });
  }

  /** Fills these, or all that there are. No step may be under way. */
  poison(buffers: Iterable<DeviceBuffer> = this.#fillings.keys()): void {
    for (const buffer of buffers) {
      const filling = this.#fillings.get(buffer);
      if (buffer.closed) this.#fillings.delete(buffer);
      if (buffer.closed || filling === undefined) continue;
      for (let at = 0; at < buffer.byteLength; at += filling.byteLength) {
        this.device.write(buffer, filling.subarray(0, buffer.byteLength - at), at);
      }
    }
  }

  #fillingOf(device: Device, { label, byteLength }: DeviceBuffer): Uint8Array | undefined {
    const content = CONTENTS[label.replace(/ of \d+ tokens$/, "")];
    switch (content) {
      case "host":
        return undefined;
      case "indices":
        return wordsOf(NONSENSE, Math.min(byteLength, PIECE_BYTES));
      case "numbers":
        return wordsOf(NAN_WORD, Math.min(byteLength, PIECE_BYTES));
      case undefined:
        throw new Error(`Nobody says here what "${label}" holds.`);
      default:
        return rowsOf(this.#layoutOf(device, content), byteLength);
    }
  }

  #layoutOf(device: Device, content: "hidden" | "inner" | "sharedInner"): RowLayout {
    const { hiddenSize, experts, shared } = this.#rows ?? {};
    const widths = {
      hidden: hiddenSize,
      inner: experts?.intermediateSize,
      sharedInner: shared?.experts.intermediateSize,
    };
    const width = widths[content];
    if (this.#rows === undefined || width === undefined) {
      throw new Error(`Nobody says how wide rows are between products (${content}).`);
    }
    return device.rowLayout(width, rowWeightsOf(this.#rows));
  }
}

/**
 * The device, with what steps work in poisoned when it is allocated and again whenever hidden states are
 * written from the host: before every step of a layer, a router or a schedule. One after the other: a
 * step under way would lose what it has written.
 *
 * @param rows of the one layer that is made on it; absent: nothing made on it has rows
 */
export function poisoned(device: Device, rows?: RowSpec): Device {
  const memory = new StepMemory(device, rows);
  return standIn(memory.device, {
    allocate: (...what) => {
      const buffer = memory.device.allocate(...what);
      memory.poison([buffer]);
      return buffer;
    },
    writeRows: (...what) => {
      memory.poison();
      device.writeRows(...what);
    },
  });
}

/** The device with some methods in the place of its own. */
function standIn(device: Device, methods: Partial<Device>): Device {
  return new Proxy(device, {
    get(target, key) {
      const value: unknown = Reflect.get(Object.hasOwn(methods, key) ? methods : target, key);
      // Methods reach for private fields, which a proxy has none of.
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

function wordsOf(word: number, byteLength: number): Uint8Array {
  return new Uint8Array(new Int32Array(byteLength / 4).fill(word).buffer);
}

/** @param byteLength of whole rows, of which there may be many */
function rowsOf(layout: RowLayout, byteLength: number): Uint8Array {
  const bytes = rowBytes(layout, 1);
  const rows = Math.min(byteLength / bytes, Math.ceil(PIECE_BYTES / bytes));
  const row = new Uint8Array(bytes);
  const values = layout.width * BYTES_PER_ELEMENT[layout.dtype];
  row.set(wordsOf(NAN_WORD, 4 * Math.ceil(values / 4)).subarray(0, values));
  const filling = new Uint8Array(rows * bytes);
  for (let r = 0; r < rows; r++) filling.set(row, r * bytes);
  return filling;
}
