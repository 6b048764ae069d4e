/** Horizontal bars from block characters, an eighth of a column fine. */

const EIGHTHS = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/** A bar of `share` (0 to 1) of `width` columns; anything above 0 shows at least a sliver. */
export function bar(share: number, width: number): string {
  const clamped = Math.min(1, Math.max(0, share));
  const eighths = Math.max(clamped > 0 ? 1 : 0, Math.round(clamped * width * 8));
  return "█".repeat(Math.floor(eighths / 8)) + (EIGHTHS[eighths % 8] as string);
}
