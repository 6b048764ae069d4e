import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DeviceUnavailableError } from "../../../../src/errors.ts";
import { parameterBytes, parseManifest } from "../../../../src/execution/cuda/bundle/manifest.ts";
import { madeBundle } from "./made-bundle.ts";

type Manifest = ReturnType<typeof madeBundle>["manifest"];
type Kernel = Record<string, unknown> & { image: Record<string, unknown> };

const kernel = (manifest: Manifest, index: number) => manifest.kernels[index] as Kernel;

/** The message for a manifest after a change. */
function refusal(change: (manifest: Manifest) => void): string {
  const { manifest } = madeBundle();
  manifest["archives"] = { sm_90a: { file: "a.br", bytes: 1, sha256: "0".repeat(64) } };
  change(manifest);
  let message = "";
  assert.throws(
    () => parseManifest(JSON.stringify(manifest), "bundle/manifest.json"),
    (error) => {
      assert.ok(error instanceof DeviceUnavailableError);
      message = error.message;
      return true;
    },
  );
  assert.match(message, /^bundle\/manifest\.json /);
  assert.match(message, /Install the package again/);
  return message;
}

describe("the manifest", () => {
  it("is read", () => {
    const manifest = parseManifest(JSON.stringify(madeBundle().manifest), "manifest.json");
    assert.ok(manifest.kernels.length > 200);
    assert.equal(manifest.options["project"]?.["dense"], 8);
    const [kernel] = manifest.kernels;
    assert.equal(kernel?.args[0]?.name, "x");
    assert.deepEqual(
      ["i32", "i64", "fp32", "fp64", "tensormap", "*bf16"].map((type) =>
        parameterBytes({ name: "p", type: type as "i32", divisible_by: null }),
      ),
      [4, 8, 4, 8, 128, 8],
    );
  });

  it("is refused if it is not JSON", () => {
    assert.throws(() => parseManifest("{", "manifest.json"), {
      name: "DeviceUnavailableError",
      message: /^manifest\.json is not JSON\. /,
    });
    assert.throws(() => parseManifest("null", "manifest.json"), /abi_version undefined/);
  });

  it("is refused if it is of another release", () => {
    assert.match(
      refusal((manifest) => {
        manifest["abi_version"] = 7;
      }),
      /has abi_version 7 and this release reads 4/,
    );
  });

  for (const [what, change, message] of [
    ["a missing table", (m) => delete m["options"], /: options: /],
    [
      "another padding",
      (m) => {
        m["padding"] = 32;
      },
      /: padding: /,
    ],
    [
      "a kernel without arguments",
      (m) => delete kernel(m, 3)["args"],
      /: kernel project_\w+, args: /,
    ],
    [
      "a kernel whose arguments are not in the table",
      (m) => {
        kernel(m, 3)["args"] = 99999;
      },
      /: kernel project_\w+, args: there is no number 99999\./,
    ],
    [
      "a kernel whose grid is not in the table",
      (m) => {
        m.tables.grid.length = 5;
      },
      /: kernel project_\w+, grid: there is no number 5\./,
    ],
    [
      "a parameter of an unknown type",
      (m) => {
        (m.tables.args[0]?.[0] as { type: string }).type = "i7";
      },
      /: tables\.args\.0\.0\.type: must be a pointer or one of i32, /,
    ],
    [
      "a hash that is none",
      (m) => {
        kernel(m, 1).image["sha256"] = "abc";
      },
      /image\.sha256: must be 64 hexadecimal digits/,
    ],
    [
      "a negative offset",
      (m) => {
        kernel(m, 1).image["offset"] = -1;
      },
      /image\.offset: /,
    ],
    ...[[64], [1, 64, 64], [1, 1, 1, 64, 64], [1, 1, 1, 1, 64, 64]].map(
      (box): [string, (m: Manifest) => void, RegExp] => [
        `a box of ${box.length} dimensions`,
        (m) => {
          const [meta] = m.kernels.flatMap((each) => each["tensordesc_meta"] as Kernel[]);
          if (meta !== undefined) meta["block_size"] = box;
        },
        /: kernel project_\w+, tensordesc_meta\.0\.block_size: must have 2 or 4 sizes/,
      ],
    ),
    ["a kernel without a name", (m) => delete kernel(m, 2)["name"], /kernel 2, name: /],
  ] satisfies [string, (manifest: Manifest) => void, RegExp][]) {
    it(`is refused for ${what}, by name`, () => {
      assert.match(refusal(change), message);
    });
  }
});
