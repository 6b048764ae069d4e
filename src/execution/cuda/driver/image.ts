/**
 * A look at a kernel image before the driver gets it.
 *
 * The driver takes an address without a length and reads on as far as the image
 * tells it to, so a file cut short is a crash of the process and not an error code.
 * Checked is only what keeps it inside the bytes; the contents are the driver's to
 * judge.
 */

import { InvalidArgumentError } from "../../../errors.ts";

const ELF_MAGIC = 0x7f454c46;
const ELF64_HEADER = 64;
const SECTION_HEADER = 64;
const PROGRAM_HEADER = 56;
/** SHT_NOBITS: a section without bytes in the file. */
const NO_BITS = 8;

/** @throws InvalidArgumentError if it is neither PTX nor a cubin that is all there */
export function checkModuleImage(image: Uint8Array): void {
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  if (image.length >= 4 && view.getUint32(0) === ELF_MAGIC) checkCubin(view);
  else checkPtx(image);
}

function checkPtx(image: Uint8Array): void {
  if (image.indexOf(0) !== image.length - 1 || image.length < 2) {
    throw new InvalidArgumentError(
      `A kernel image of ${image.length} bytes is no cubin, and no PTX either: that is text ending in its only zero byte. Reinstall the package.`,
    );
  }
}

function checkCubin(view: DataView): void {
  const length = view.byteLength;
  if (length < ELF64_HEADER) throw cutShort(length, ELF64_HEADER);
  const within = (offset: bigint, bytes: bigint): void => {
    if (offset + bytes > BigInt(length)) throw cutShort(length, offset + bytes);
  };
  const programs = view.getBigUint64(32, true);
  within(programs, BigInt(view.getUint16(56, true) * PROGRAM_HEADER));
  const sections = view.getBigUint64(40, true);
  const count = view.getUint16(60, true);
  within(sections, BigInt(count * SECTION_HEADER));
  for (let i = 0; i < count; i++) {
    const header = Number(sections) + i * SECTION_HEADER;
    if (view.getUint32(header + 4, true) === NO_BITS) continue;
    within(view.getBigUint64(header + 24, true), view.getBigUint64(header + 32, true));
  }
}

function cutShort(length: number, needed: number | bigint): InvalidArgumentError {
  return new InvalidArgumentError(
    `A cubin of ${length} bytes is cut short: its headers speak of ${needed} bytes. Reinstall the package.`,
  );
}
