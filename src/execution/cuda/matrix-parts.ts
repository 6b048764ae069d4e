/**
 * Which parts of a projection's matrices are there entirely, where several may be written at the same time. What is half
 * written, or could not be written, is not there. Where the parts lie is whoever's who writes them.
 */

import type { ProjectionPart, ProjectionSpec } from "../device.ts";

interface Parts {
  readonly there: Set<ProjectionPart>;
  /** Writes under way. */
  writers: number;
  /** Writes so far. */
  version: number;
}

export class MatrixParts {
  readonly #parts: number;
  readonly #matrices = new Map<number, Parts>();

  constructor(spec: ProjectionSpec) {
    this.#parts = partNames(spec).length;
  }

  /** Writes a part; resolves with whether all parts of the matrix are there now, and nobody is writing one. */
  async write(index: number, part: ProjectionPart, write: () => Promise<void>): Promise<boolean> {
    const matrix = this.#of(index);
    matrix.writers += 1;
    matrix.version += 1;
    matrix.there.delete(part);
    try {
      await write();
      matrix.there.add(part);
    } catch (error) {
      // Of another write to the same place, too.
      matrix.there.delete(part);
      throw error;
    } finally {
      matrix.writers -= 1;
    }
    return matrix.writers === 0 && matrix.there.size === this.#parts;
  }

  /** A number that changes whenever a part of the matrix begins to be written. */
  version(index: number): number {
    return this.#matrices.get(index)?.version ?? 0;
  }

  /** Whether no part is there, and nobody is writing one. */
  none(index: number): boolean {
    const matrix = this.#matrices.get(index);
    return matrix === undefined || (matrix.writers === 0 && matrix.there.size === 0);
  }

  /** Sets which parts are there; writes under way add theirs. */
  set(index: number, parts: readonly ProjectionPart[]): void {
    const { there } = this.#of(index);
    there.clear();
    for (const part of parts) there.add(part);
  }

  #of(index: number): Parts {
    const known = this.#matrices.get(index);
    if (known !== undefined) return known;
    const matrix: Parts = { there: new Set(), writers: 0, version: 0 };
    this.#matrices.set(index, matrix);
    return matrix;
  }
}

/** What every output is computed from. */
export function partNames({ gated }: ProjectionSpec): readonly ProjectionPart[] {
  return gated ? ["gate", "value"] : ["value"];
}
