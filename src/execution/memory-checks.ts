/**
 * The checks of buffers, of host memory that is copied to or from them, and of rows, that every
 * device makes. Which buffers are its own and which layouts it has only the device knows.
 */

import { shapeText, shown } from "../errors/wording.ts";
import { InvalidArgumentError, ShapeError } from "../errors.ts";
import { checkDataLength, holds, type Tensor } from "../tensor.ts";
import { type Fields, requireFields, requireObject } from "./checks.ts";
import type { AllocateOptions, RowLayout } from "./device.ts";

/** Most values of a row: with what rows are rounded up to, an int32 counts them. */
const MOST_WIDTH = 0x7fffffff - 64;

const OPTIONS: Fields<AllocateOptions> = { mirrored: true, zeroed: true };

/** What the checks need to know of a buffer. */
export interface CheckedBuffer {
  readonly label: string;
  readonly byteLength: number;
}

/**
 * @param what has the label, as `"A buffer"`
 * @throws InvalidArgumentError unless the label is text, which messages can repeat
 */
export function checkLabel(what: string, label: string): void {
  if (typeof label === "string") return;
  throw new InvalidArgumentError(`${what}'s label is ${shown(label)}. Use text to call it by.`);
}

/** @throws InvalidArgumentError unless label and options are such */
export function checkAllocation(label: string, options: AllocateOptions): void {
  checkLabel("A buffer", label);
  requireFields(options, "options", "an object, or left out", OPTIONS);
  for (const [name, option] of Object.entries(options)) {
    if (option === undefined || typeof option === "boolean") continue;
    throw new InvalidArgumentError(
      `options.${name} is ${shown(option)}; it must be true, false, or left out.`,
    );
  }
}

/** @throws InvalidArgumentError unless so many bytes could be allocated anywhere */
export function checkSize(byteLength: number, label: string): void {
  if (Number.isSafeInteger(byteLength) && byteLength >= 0) return;
  throw new InvalidArgumentError(
    `Cannot allocate ${shown(byteLength)} bytes for ${label}: the size must be a whole number, 0 or more.`,
  );
}

/** @throws InvalidArgumentError unless the buffer has bytes `begin` to `begin + length - 1` */
export function checkRange(buffer: CheckedBuffer, begin: number, length: number): void {
  const whole = Number.isInteger(begin) && Number.isInteger(length);
  if (whole && begin >= 0 && length >= 0 && begin + length <= buffer.byteLength) return;
  throw new InvalidArgumentError(
    `Buffer "${buffer.label}" has ${buffer.byteLength} bytes, so there are no ${shown(length)} from byte ${shown(begin)} on.`,
  );
}

/**
 * @param name how the argument is called in error messages
 * @throws InvalidArgumentError unless it is a typed array or a DataView
 */
export function checkHostMemory(name: string, memory: ArrayBufferView): void {
  if (ArrayBuffer.isView(memory)) return;
  throw new InvalidArgumentError(`${name} is ${shown(memory)}; it must be a typed array.`);
}

/** @throws InvalidArgumentError unless rows can have so many values */
export function checkRowWidth(width: number): void {
  if (Number.isInteger(width) && width >= 1 && width <= MOST_WIDTH) return;
  throw new InvalidArgumentError(
    `Rows cannot have ${shown(width)} values. Use a whole number, 1 or more.`,
  );
}

/** @throws InvalidArgumentError unless it is a layout of some device */
export function checkLayout(layout: RowLayout): void {
  requireObject(layout, "layout", "what rowLayout() gives");
  checkRowWidth(layout.width);
}

/** @throws InvalidArgumentError unless it is a number of rows */
export function checkRowCount(rows: number): void {
  if (Number.isInteger(rows) && rows >= 0) return;
  throw new InvalidArgumentError(`${shown(rows)} rows cannot be written. Use 0 or more.`);
}

/**
 * @throws InvalidArgumentError unless it is a tensor whose data is of its element type
 * @throws ShapeError unless it is [*, width] in floats, and its data what the shape says
 */
export function checkRowSource({ width }: RowLayout, source: Tensor): void {
  requireObject(source, "source", "a tensor");
  const { shape, dtype, data } = source;
  if (!Array.isArray(shape) || !holds(dtype, data)) {
    throw new InvalidArgumentError(
      `source is ${shown(source)}; it must be a tensor: an object with "dtype", "shape" and "data", a typed array of that element type.`,
    );
  }
  if (shape.at(-1) !== width || dtype === "int32") {
    throw new ShapeError(
      `Rows of ${width} values cannot be written from a ${dtype} tensor of shape ${shapeText(shape)}. Use floats, with the rows' width as the last extent.`,
    );
  }
  checkDataLength(source);
}
