/** Loading code, and asking it what parameters its kernels take. */

import type { NativeBlock } from "../../native/library.ts";
import type { Checked } from "./checked.ts";
import type { KernelParameter } from "./driver.ts";
import { INVALID_VALUE, SUCCESS } from "./errors.ts";
import { checkModuleImage } from "./image.ts";

/** CUjit_option: where the compiler of PTX writes what it objects to. */
const JIT_ERROR_LOG = 5;
const JIT_ERROR_LOG_BYTES = 6;
const LOG_BYTES = 8192;

/** Loads images; keeps the room for the compiler's log. */
export class ModuleLoader {
  readonly #at: Checked;
  #log: NativeBlock | undefined;

  constructor(checked: Checked) {
    this.#at = checked;
  }

  /** See `Driver.loadModule`. */
  load(image: Uint8Array): bigint {
    checkModuleImage(image);
    this.#log ??= this.#at.library.allocate(LOG_BYTES);
    const log = Buffer.from(this.#log.bytes);
    log.fill(0);
    const options = new Int32Array([JIT_ERROR_LOG, JIT_ERROR_LOG_BYTES]);
    const values = new BigUint64Array([this.#log.address, BigInt(LOG_BYTES)]);
    const { cu, first } = this.#at;
    const code = cu.cuModuleLoadDataEx(first, image, options.length, options, values);
    if (code !== SUCCESS) {
      const said = log.toString("utf8", 0, log.indexOf(0)).trim();
      throw this.#at.error("cuModuleLoadDataEx", code, said);
    }
    return this.#at.handle(0);
  }
}

/** See `Driver.functionParameters`. */
export function functionParameters(
  checked: Checked,
  fn: bigint,
): readonly KernelParameter[] | null {
  const query = checked.calls.parameterQuery;
  if (query === null) return null;
  const parameters: KernelParameter[] = [];
  for (;;) {
    const code = query.cuFuncGetParamInfo(fn, parameters.length, checked.first, checked.second);
    // The end of the list is an index that the driver does not take.
    if (code === INVALID_VALUE) return parameters;
    checked.check("cuFuncGetParamInfo", code);
    parameters.push({ offset: checked.size(0), size: checked.size(1) });
  }
}
