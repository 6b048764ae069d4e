/** Loaded in front of a worker, which then never opens its device, as with a driver that hangs. Leaves its process id. */

import { writeFileSync } from "node:fs";

writeFileSync(`${process.env["NEXUS_TEST_HANGING"]}/${process.pid}`, "");
for (;;);
