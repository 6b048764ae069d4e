/** Copies of specs for those who keep one: what a caller does to its own later, or to the copy, changes nothing. */

/** A frozen copy of plain data, through whatever proxies it is seen (those of a user interface's state, say), which cannot be cloned. */
export function copyOf<T>(value: T): T {
  if (Array.isArray(value)) return Object.freeze(value.map(copyOf)) as T;
  if (value === null || typeof value !== "object") return value;
  const fields = Object.entries(value).map(([key, each]) => [key, copyOf(each)]);
  return Object.freeze(Object.fromEntries(fields)) as T;
}
