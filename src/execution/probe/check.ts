/** What a probe finds out: one thing the machine may have, and what that means for Nexus. */

export interface Check {
  readonly name: string;
  /** `limited`: it is there, but Nexus cannot use it, or not all of it. `absent`: it is not there, and not needed either. */
  readonly status: "ok" | "limited" | "missing" | "absent";
  /** What is there. */
  readonly found: string;
  /** What Nexus does with it, or instead. */
  readonly use: string;
  /** What to do about it; always there when it is missing or absent. */
  readonly remedy?: string;
}
