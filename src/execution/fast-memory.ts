/**
 * From how many bytes a second on a GPU's memory counts as fast: its L2 is hardly faster then, and what saves reads of memory saves less
 * time. An H200 (4.8 TB/s) is beyond it, an H100 (3.35 TB/s) is not; nothing in between was measured.
 */
export const FAST_MEMORY = 4e12;
