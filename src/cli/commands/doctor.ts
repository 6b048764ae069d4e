/** `nexus doctor`: what this machine has, what Nexus will use of it, what to do about the rest. */

import { Command } from "commander";
import type { DeviceFlags } from "../device.ts";
import { deviceOption, jsonOption } from "../options.ts";

interface DoctorFlags extends Pick<DeviceFlags, "device"> {
  readonly json?: boolean;
}

export function doctorCommand(): Command {
  return new Command("doctor")
    .description("Show what this machine has and what Nexus will use.")
    .addOption(deviceOption("the one to look at; exit code 1 if it is not there"))
    .addOption(jsonOption())
    .action(async ({ device, json = false }: DoctorFlags) => {
      // Imported when run: help and version need none of it.
      const { runDoctor } = await import("../doctor.ts");
      const { probeMachine } = await import("../../execution/probe.ts");
      process.exitCode = runDoctor({ json, stdout: process.stdout }, await probeMachine(device));
    });
}
