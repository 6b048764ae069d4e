/** From errors to exit codes and lines. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { CommanderError } from "commander";
import { failureOf, IncorrectResultError } from "../../src/cli/failure.ts";
import {
  CheckpointError,
  DeviceFailedError,
  DeviceUnavailableError,
  DisposedError,
  InvalidArgumentError,
  OutOfDeviceMemoryError,
} from "../../src/errors.ts";

test("what cannot be done is 2, what failed is 1", () => {
  const code = (error: unknown) => failureOf(error, "run").exitCode;
  assert.equal(code(new InvalidArgumentError("x is 3.")), 2);
  assert.equal(code(new CheckpointError("truncated", "f", "is short.")), 2);
  assert.equal(code(new DeviceUnavailableError("none.")), 2);
  assert.equal(code(new OutOfDeviceMemoryError("weights", 2, 1, "Use less.")), 2);
  assert.equal(code(new DeviceFailedError("a worker died.")), 1);
  assert.equal(code(new IncorrectResultError("it differs.")), 1);
  assert.equal(code(new DisposedError("The layer")), 1);
  assert.equal(code(new TypeError("oops")), 1);
  assert.equal(code("a string"), 1);
});

test("every failure is one line that begins with the command's name", () => {
  const { line } = failureOf(new InvalidArgumentError("first\n  second\n"), undefined);
  assert.equal(line, "nexus: first second");
});

test("a line holds nothing that commands a terminal, and ends somewhere", () => {
  const { line } = failureOf(
    new TypeError(`a\u001b[31m\u202e\u009b\r\nb${"x".repeat(1e6)}`),
    "run",
  );
  assert.match(line, /^nexus: unexpected error: a\[31m bx+\.\.\.$/);
  assert.ok(line.length < 520, `${line.length} characters`);
});

test("an unexpected error says how to see more", () => {
  const { line } = failureOf(new TypeError("undefined is not a function"), "demo");
  assert.match(line, /^nexus: unexpected error: undefined is not a function .*NEXUS_DEBUG=1/);
  assert.match(failureOf(undefined, "demo").line, /^nexus: unexpected error: undefined/);
});

test("usage errors point to the help of their command", () => {
  const error = new CommanderError(1, "commander.unknownOption", "error: unknown option '--x'");
  assert.deepEqual(failureOf(error, "demo"), {
    exitCode: 2,
    line: `nexus: unknown option '--x'. See "nexus demo --help".`,
  });
  const unknown = new CommanderError(1, "commander.unknownCommand", "error: unknown command 'x'");
  assert.match(failureOf(unknown, "help").line, /'x'\. See "nexus --help"\.$/);
  assert.match(failureOf(error, undefined).line, /See "nexus --help"\.$/);
});

test("help and version are no failures; help for want of a command is, silently", () => {
  const help = new CommanderError(0, "commander.helpDisplayed", "(outputHelp)");
  assert.deepEqual(failureOf(help, undefined), { exitCode: 0, line: "" });
  const none = new CommanderError(1, "commander.help", "(outputHelp)");
  assert.deepEqual(failureOf(none, undefined), { exitCode: 2, line: "" });
});
