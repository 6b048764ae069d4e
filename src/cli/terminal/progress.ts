/**
 * A progress bar on standard error, only where that is a terminal that can take it
 * away again; anywhere else nothing is written, so logs and pipes stay clean.
 */

import { bar } from "./bar.ts";
import { LINE_WIDTH } from "./format.ts";
import { takesEscapes } from "./style.ts";

const BAR_WIDTH = 30;
const CLEAR_LINE = "\r\u001b[2K";

/** Redrawing more often than this only costs the measured work time. */
const MINIMUM_INTERVAL_MS = 100;

export class Progress implements Disposable {
  readonly #stream: NodeJS.WriteStream;
  readonly #canDraw: boolean;
  #drawnAt = Number.NEGATIVE_INFINITY;
  #visible = false;

  constructor(stream: NodeJS.WriteStream = process.stderr, environment = process.env) {
    this.#stream = stream;
    this.#canDraw = takesEscapes(stream, environment);
  }

  /** Shows how far the work is, 0 to 1, and what is being done. */
  show(done: number, label: string): void {
    const now = performance.now();
    if (!this.#canDraw || now - this.#drawnAt < MINIMUM_INTERVAL_MS) return;
    this.#drawnAt = now;
    this.#visible = true;
    const percent = `${Math.floor(done * 100)} %`.padStart(5);
    const line = ` ${bar(done, BAR_WIDTH).padEnd(BAR_WIDTH)} ${percent}  ${label}`;
    // One column is left free: writing the last one makes some terminals wrap.
    this.#stream.write(CLEAR_LINE + line.slice(0, LINE_WIDTH - 1));
  }

  /** Takes the bar off the screen. */
  clear(): void {
    if (this.#visible) this.#stream.write(CLEAR_LINE);
    this.#visible = false;
  }

  [Symbol.dispose](): void {
    this.clear();
  }
}
