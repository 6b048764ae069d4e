/**
 * The part of the WebAssembly JavaScript interface that the CPU device uses.
 * Node has it, but its type package leaves it to the DOM library, which this
 * project does not load.
 */

declare namespace WebAssembly {
  class Module {
    constructor(bytes: BufferSource);
    /** Modules have no members; the brand keeps other objects from passing for one. */
    readonly [Symbol.toStringTag]: "WebAssembly.Module";
  }

  class Instance {
    constructor(module: Module, imports?: Record<string, Record<string, unknown>>);
    readonly exports: Readonly<Record<string, unknown>>;
  }

  interface MemoryDescriptor {
    /** Pages of 64 KiB. */
    initial: number;
    /** Pages of 64 KiB; required if `shared`. */
    maximum?: number;
    shared?: boolean;
  }

  class Memory {
    constructor(descriptor: MemoryDescriptor);
    readonly buffer: ArrayBufferLike;
    /** Adds pages; returns how many there were. @throws RangeError if there is no room */
    grow(pages: number): number;
  }

  function validate(bytes: BufferSource): boolean;
  function compile(bytes: BufferSource): Promise<Module>;

  type BufferSource = ArrayBufferView<ArrayBuffer> | ArrayBuffer;
}
