/** Everything a user can get wrong: one clear line, exit code 2, no stack. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { chmod, cp, lstat, mkdir, readdir, writeFile } from "node:fs/promises";
import path from "node:path";
import { test } from "node:test";
import { FIXTURES, inTemporaryFolder, nexus, type Outcome } from "./nexus.ts";

const MIXTRAL = path.join(FIXTURES, "mixtral");
const REFERENCE = path.join(MIXTRAL, "reference.safetensors");

function run(changes: Record<string, string | undefined> = {}): string[] {
  const flags = {
    "--checkpoint": MIXTRAL,
    "--layer": "1",
    "--input": REFERENCE,
    "--tensor": "block_input",
    "--output": "/nowhere/to/be/found/out.safetensors",
    ...changes,
  };
  const given = Object.entries(flags).filter(([, value]) => value !== undefined);
  return ["run", ...given.flatMap(([flag, value]) => [flag, value as string])];
}

/** One line on standard error that says what is expected; nothing on standard output; no stack. */
function assertOneLine({ code, stdout, stderr }: Outcome, expected: RegExp, exitCode = 2): void {
  assert.equal(stdout, "");
  assert.match(stderr, /^nexus: [^\n]+\n$/);
  assert.match(stderr, expected);
  assert.doesNotMatch(stderr, /\bat .*\.js:\d+/);
  assert.equal(code, exitCode);
}

const CASES: readonly (readonly [string, readonly string[], RegExp])[] = [
  ["an unknown command", ["dance"], /unknown command 'dance'/],
  ["help for an unknown command", ["help", "dance"], /unknown command 'dance'/],
  ["an unknown flag", ["demo", "--colour"], /unknown option '--colour'/],
  [
    "one wrong number of several",
    ["bench", "--tokens", "1,abc"],
    /"abc" will not do\. It must be a whole/,
  ],
  ["no input", run({ "--input": "" }), /--input <file>.* It names nothing/],
  ["no checkpoint", run({ "--checkpoint": "" }), /--checkpoint <dir>.* It names nothing/],
  [
    "a file for a checkpoint",
    run({ "--checkpoint": path.join(MIXTRAL, "config.json") }),
    /a part of its path is a file, not a folder/,
  ],
  [
    "an ablation with no more streams than slices",
    ["bench", "--ablation", "--device", "cpu", "--streams", "3"],
    /--streams is 3; .* 4 or more/,
  ],
  [
    "packed weights on a CPU",
    ["bench", "--device", "cpu", "--pack-weights", "instead"],
    /--pack-weights is for a GPU\. Drop --pack-weights, or drop --device cpu/,
  ],
  [
    "packed weights on a CPU of so many threads",
    ["bench", "--threads", "2", "--pack-weights", "beside"],
    /--threads is for the CPU device and --pack-weights for a GPU/,
  ],
  [
    "packed weights of two files",
    ["bench", "--pack-weights", "instead", "--compare", "a.json", "b.json"],
    /'--compare <files\.\.\.>' cannot be used with option '--pack-weights <how>'/,
  ],
  ["a misspelt flag", ["demo", "--jsn"], /--json/],
  ["a stray argument", ["doctor", "now"], /too many arguments/],
  ["a seed that is no number", ["demo", "--seed", "x"], /--seed.*'x'.*whole number/],
  ["a seed out of range", ["demo", "--seed", "4294967296"], /0 to 4294967295/],
  ["a flag without its value", ["demo", "--seed"], /--seed.*argument missing/],
  ["no threads", ["demo", "--threads", "0"], /--threads.*1 to 1024/],
  ["an unknown device", ["demo", "--device", "tpu"], /--device.*auto, cpu, cuda/],
  ["an unknown device to look at", ["doctor", "--device", "gpu"], /--device.*auto, cpu, cuda/],
  ["CUDA where there is none", ["demo", "--device", "cuda"], /CUDA.*cpu/],
  ["CUDA for a benchmark", ["bench", "--device", "cuda"], /CUDA/],
  ["a missing flag", run({ "--layer": undefined }), /required option '--layer <n>'/],
  [
    "several missing flags",
    run({ "--layer": undefined, "--input": undefined }),
    /required options '--layer <n>', '--input <file>' not specified/,
  ],
  ["a misspelt flag", [...run({ "--layer": undefined }), "--layr", "0"], /unknown option '--layr'/],
  ["a missing input", run({ "--input": undefined }), /required option '--input <file>'/],
  ["a negative layer", run({ "--layer": "-1" }), /--layer.*0 or more/],
  ["a layer that is not there", run({ "--layer": "7" }), /no layer 7/],
  [
    "a folder that is no checkpoint",
    run({ "--checkpoint": "/nowhere" }),
    /\/nowhere\/config\.json/,
  ],
  ["an input that is not there", run({ "--input": "/nowhere/in" }), /\/nowhere\/in/],
  ["an input that is a folder", run({ "--input": MIXTRAL }), /mixtral/],
  [
    "an input of another format",
    run({ "--input": path.join(MIXTRAL, "config.json") }),
    /config\.json/,
  ],
  ["a tensor that is not there", run({ "--tensor": "hidden" }), /"hidden".*block_input/],
  [
    "a tensor of another width",
    run({ "--tensor": "gate_output_1" }),
    /\[37, 2\].*hidden size is 64/,
  ],
  ["a tensor of whole numbers", run({ "--tensor": "gate_output_2" }), /I64.*F32, BF16, F16/],
  ["an output folder that is not there", run(), /--output.*ENOENT/],
  ["an output that is a folder", run({ "--output": FIXTURES }), /is a folder/],
  ["an empty output name", run({ "--output": "" }), /--output "" names no file/],
  ["an output name that ends with a slash", run({ "--output": "/tmp/no/" }), /names no file/],
  ["an output below a file", run({ "--output": path.join(REFERENCE, "out") }), /ENOTDIR/],
  ["an output that is the input", run({ "--output": REFERENCE }), /overwrite what is read/],
  [
    "an output that is the model",
    run({ "--output": path.join(MIXTRAL, "model.safetensors") }),
    /overwrite/,
  ],
  ["an unknown preset", ["bench", "--preset", "tiny"], /"tiny".*small, medium, large/],
  ["an unknown preset among others", ["bench", "--preset", "small,tiny"], /"tiny"/],
  ["an unknown routing", ["bench", "--routing", "skewed"], /"skewed".*zipf:S/],
  ["no tokens", ["bench", "--tokens", "0"], /--tokens.*1 to 65536/],
  ["an empty list", ["bench", "--tokens", ""], /--tokens/],
  ["an unknown element type", ["bench", "--dtype", "int8"], /float32, bfloat16, float16/],
  ["an unknown policy", ["bench", "--policy", "best"], /static, dynamic, proportional, adaptive/],
  ["no time", ["bench", "--min-time", "0"], /--min-time.*greater than 0/],
  ["no repetition", ["bench", "--repeat", "0"], /--repeat.*1 to/],
  [
    "a time beside a number of calls",
    ["bench", "--min-time", "2", "--repeat", "3"],
    /'--min-time <s>' cannot be used with option '--repeat <n>'/,
  ],
  [
    "a preset that does not fit",
    ["bench", "--preset", "mixtral-8x7b", "--dtype", "float32"],
    /mixtral-8x7b.*bytes are available.*bfloat16/,
  ],
];

for (const [what, args, expected] of CASES) {
  test(`${what}: one line, exit code 2`, async () => {
    assertOneLine(await nexus(args), expected);
  });
}

test("a folder that may not be written to is refused before any work", async (t) => {
  if (process.getuid?.() === 0) return t.skip("root may write everywhere");
  await inTemporaryFolder(async (folder) => {
    const closed = path.join(folder, "closed");
    await mkdir(closed);
    await chmod(closed, 0o555);
    assertOneLine(await nexus(run({ "--output": path.join(closed, "out") })), /EACCES/);
  });
});

test("an output that is a pipe is refused before any work, and stays one", async () => {
  await inTemporaryFolder(async (folder) => {
    const pipe = path.join(folder, "pipe");
    execFileSync("mkfifo", [pipe]);
    assertOneLine(await nexus(run({ "--output": pipe })), /Name a regular file/);
    assert.ok((await lstat(pipe)).isFIFO());
  });
});

test("an output name too long for a folder is refused before any work", async () => {
  await inTemporaryFolder(async (folder) => {
    const output = path.join(folder, "x".repeat(256));
    // The device is not there: whoever gets as far as opening it says so.
    const args = [...run({ "--output": output }), "--device", "cuda"];
    assertOneLine(await nexus(args), /ENAMETOOLONG/);
    assert.deepEqual(await readdir(folder), []);
  });
});

test("a config that commands the terminal or floods it makes one printable line", async () => {
  await inTemporaryFolder(async (folder) => {
    const checkpoint = path.join(folder, "mixtral");
    await cp(MIXTRAL, checkpoint, { recursive: true });
    const hostile = `\u001b]0;x\u0007\u202e${"y".repeat(1e6)}`;
    for (const config of [
      { model_type: hostile },
      { model_type: "mixtral", hidden_act: hostile },
    ]) {
      await writeFile(path.join(checkpoint, "config.json"), JSON.stringify(config));
      const outcome = await nexus(run({ "--checkpoint": checkpoint }));
      assertOneLine(outcome, /"(model_type|hidden_act)" is "\\u001b\]0;x\\u0007\\u202ey+\.\.\."/);
      assert.ok(outcome.stderr.length < 600);
    }
    await writeFile(path.join(checkpoint, "config.json"), "{}");
    const missing = await nexus(run({ "--checkpoint": checkpoint }));
    assertOneLine(missing, /"model_type" is missing; expected string\.\n$/);
  });
});

test("NEXUS_DEBUG=1 adds the stack", async () => {
  const { code, stderr } = await nexus(["demo", "--device", "cuda"], { NEXUS_DEBUG: "1" });
  assert.equal(code, 2);
  assert.match(stderr, /^nexus: .*CUDA.*\nDeviceUnavailableError: .*\n +at /);
});
