/**
 * The GPU's number formats on the host: 16-bit floats to float32 and back (rounding to the
 * nearest, ties to even, as the hardware does), tf32, and the integers that have the order
 * of floats. Written from the formats' definitions and sharing no code with what is tested.
 */

const word = new DataView(new ArrayBuffer(4));

function bitsOf(value: number): number {
  word.setFloat32(0, value);
  return word.getUint32(0);
}

function floatOf(bits: number): number {
  word.setUint32(0, bits);
  return word.getFloat32(0);
}

/** Every float16 by its bits. */
const HALVES = Float32Array.from({ length: 1 << 16 }, (_, bits) => {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
});

export function widenHalves(from: Uint16Array): Float32Array {
  const values = new Float32Array(from.length);
  for (let i = 0; i < from.length; i++) values[i] = HALVES[from[i] as number] as number;
  return values;
}

export function widenBrains(from: Uint16Array): Float32Array {
  const bits = new Uint32Array(from.length);
  for (let i = 0; i < from.length; i++) bits[i] = (from[i] as number) << 16;
  return new Float32Array(bits.buffer);
}

/** The bits of the bfloat16 nearest to a float32. */
export function brainBits(value: number): number {
  if (Number.isNaN(value)) return 0x7fc0;
  const bits = bitsOf(value);
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

/** The bits of the float16 nearest to a float32. */
export function halfBits(value: number): number {
  if (Number.isNaN(value)) return 0x7e00;
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const size = Math.abs(value);
  // Halfway between the largest float16 and what would come next.
  if (size >= 65520) return sign | 0x7c00;
  const exponent = Math.max(-14, Math.floor(Math.log2(size)));
  const steps = roundToEven(size / 2 ** (exponent - 10));
  // Normal numbers begin at 1024 steps, and a carry goes on into the exponent.
  return sign | (steps < 1024 ? steps : ((exponent + 14) << 10) + steps);
}

function roundToEven(value: number): number {
  const below = Math.floor(value);
  const over = value - below;
  if (over !== 0.5) return over < 0.5 ? below : below + 1;
  return below % 2 === 0 ? below : below + 1;
}

/** float32 rounded to the 10 bits of mantissa that tensor cores take, ties away from zero. */
export function toTf32(value: number): number {
  if (!Number.isFinite(value)) return value;
  return floatOf((bitsOf(value) + 0x1000) & 0xffffe000);
}

/** Below the key of every float. */
export const LOWEST_KEY = -(2 ** 31);
export const NAN_KEY = 2 ** 31 - 1;
export const INFINITY_KEY = 0x7f800000;
export const MINUS_INFINITY_KEY = -0x7f800001;

function flip(bits: number): number {
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

/** An integer in the order of the floats: -0 is 0, NaN above all. */
export function keyOf(value: number): number {
  return Number.isNaN(value) ? NAN_KEY : flip(bitsOf(value + 0) | 0);
}

/** The float of a key. */
export function keyed(key: number): number {
  return floatOf(flip(key) >>> 0);
}

/** Number of bits set in a word. */
export function popcount(bits: number): number {
  let n = bits - ((bits >>> 1) & 0x55555555);
  n = (n & 0x33333333) + ((n >>> 2) & 0x33333333);
  return Math.imul((n + (n >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

/** Changes every element in place. */
export function update(values: Float32Array, change: (value: number) => number): void {
  for (let i = 0; i < values.length; i++) values[i] = change(values[i] as number);
}
