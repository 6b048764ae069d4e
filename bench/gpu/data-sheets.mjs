/** What the data sheets say of cards: bandwidth of device memory, and dense bfloat16. Other cards have none here. */

const DATA_SHEETS = {
  "NVIDIA H200": { dataSheetTBs: 4.8, dataSheetTFlops: 989 },
  "NVIDIA H100 80GB HBM3": { dataSheetTBs: 3.35, dataSheetTFlops: 989 },
  "NVIDIA A100-SXM4-80GB": { dataSheetTBs: 2.039, dataSheetTFlops: 312 },
};
const NO_DATA_SHEET = { dataSheetTBs: null, dataSheetTFlops: null };

/** @param name as the driver has it */
export function dataSheetOf(name) {
  return DATA_SHEETS[name] ?? NO_DATA_SHEET;
}
