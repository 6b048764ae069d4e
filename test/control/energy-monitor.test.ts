/** The energy monitor on a counter and a clock that the test turns by hand. */

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import {
  type EnergyMeasured,
  EnergyMonitor,
  type EnergyReading,
} from "../../src/control/energy-monitor.ts";
import { InvalidArgumentError } from "../../src/errors.ts";
import type { EnergySource } from "../../src/execution/device.ts";

/** A counter with a minimum window of 50 ms, and the clock beside it. */
class Meter {
  joules = 100;
  milliseconds = 1000;
  looks = 0;
  failure: Error | undefined;

  readonly source: EnergySource = {
    available: true,
    domain: "test meter",
    minimumWindowSeconds: 0.05,
    joules: async () => {
      this.looks++;
      if (this.failure !== undefined) throw this.failure;
      return this.joules;
    },
  };

  monitor(): EnergyMonitor {
    return new EnergyMonitor(this.source, () => this.milliseconds);
  }

  /** Time passes and energy is spent; what is pending gets its turn first and last. */
  async pass(milliseconds: number, joules: number): Promise<void> {
    await settle();
    this.milliseconds += milliseconds;
    this.joules += joules;
    await settle();
  }
}

const settle = () => new Promise(setImmediate);

function measured(reading: EnergyReading): EnergyMeasured {
  assert.ok(reading.available, reading.available ? "" : reading.reason);
  return reading;
}

function refused(reading: EnergyReading): string {
  assert.ok(!reading.available);
  return reading.reason;
}

const absent: EnergySource = { available: false, reason: "no counter here" };

describe("EnergyMonitor windows", () => {
  it("measures the work between begin and end", async () => {
    const meter = new Meter();
    const window = meter.monitor().begin();
    await meter.pass(500, 20);
    assert.deepEqual(await window.end({ tokens: 80 }), {
      available: true,
      joules: 20,
      seconds: 0.5,
      watts: 40,
      tokens: 80,
      tokensPerJoule: 4,
      joulesPerToken: 0.25,
      domain: "test meter",
    });
  });

  it("keeps overlapping windows apart, and lets one be asked again", async () => {
    const meter = new Meter();
    const monitor = meter.monitor();
    const outer = monitor.begin();
    await meter.pass(100, 1);
    const inner = monitor.begin();
    await meter.pass(100, 2);
    assert.equal(measured(await inner.end({ tokens: 1 })).joules, 2);
    await meter.pass(100, 4);
    assert.equal(measured(await outer.end({ tokens: 1 })).joules, 7);
    assert.equal(measured(await inner.end({ tokens: 1 })).joules, 6);
  });

  it("gives no joules per token where there were no tokens", async () => {
    const meter = new Meter();
    const window = meter.monitor().begin();
    await meter.pass(100, 1);
    const reading = measured(await window.end({ tokens: 0 }));
    assert.equal(reading.tokensPerJoule, 0);
    assert.equal(reading.joulesPerToken, null);
  });

  it("refuses a window shorter than the counter's minimum", async () => {
    const meter = new Meter();
    const window = meter.monitor().begin();
    await meter.pass(49.9, 1);
    assert.match(refused(await window.end({ tokens: 1 })), /0\.0499 s is shorter than the 0\.05 s/);
    await meter.pass(0.2, 0);
    assert.equal(measured(await window.end({ tokens: 1 })).joules, 1);
  });

  it("refuses a counter that went back, stood still or gave no number", async () => {
    const meter = new Meter();
    const window = meter.monitor().begin();
    await meter.pass(100, -30);
    assert.match(refused(await window.end({ tokens: 1 })), /went back from 100 J to 70 J/);
    await meter.pass(0, 30);
    assert.match(refused(await window.end({ tokens: 1 })), /stood still/);
    meter.joules = Number.NaN;
    refused(await window.end({ tokens: 1 }));
  });

  it("says so when either look at the counter fails", async () => {
    const meter = new Meter();
    meter.failure = new Error("EIO");
    const broken = meter.monitor().begin();
    await settle();
    meter.failure = undefined;
    await meter.pass(100, 1);
    assert.match(refused(await broken.end({ tokens: 1 })), /counter failed: EIO/);
    const window = meter.monitor().begin();
    await meter.pass(100, 1);
    meter.failure = new Error("ENODEV");
    assert.match(refused(await window.end({ tokens: 1 })), /counter failed: ENODEV/);
  });

  it("passes the source's reason on, and looks at nothing", async () => {
    const monitor = new EnergyMonitor(absent, () => assert.fail("read the clock"));
    assert.deepEqual(await monitor.begin().end({ tokens: 5 }), absent);
    assert.deepEqual(monitor.sample(5, 0.1), absent);
  });

  it("rejects token counts that are none, with and without a counter", async () => {
    for (const source of [new Meter().source, absent]) {
      for (const tokens of [-1, 0.5, Number.NaN, Number.POSITIVE_INFINITY]) {
        const monitor = new EnergyMonitor(source);
        await assert.rejects(monitor.begin().end({ tokens }), InvalidArgumentError);
        assert.throws(() => monitor.sample(tokens, 0.1), InvalidArgumentError);
      }
    }
  });
});

describe("EnergyMonitor sampling", () => {
  /** Steps of 10 ms and 0.5 J each, with 8 tokens. */
  async function run(meter: Meter, monitor: EnergyMonitor, steps: number) {
    const readings: EnergyReading[] = [];
    for (let step = 0; step < steps; step++) {
      await meter.pass(10, 0.5);
      readings.push(monitor.sample(8, 0.01));
    }
    return readings;
  }

  it("reads the counter once per window and attributes every step to one reading", async () => {
    const meter = new Meter();
    const monitor = meter.monitor();
    const readings = await run(meter, monitor, 101);
    // The first sample opens the window at the end of its step; then a look every five steps.
    assert.equal(meter.looks, 21);
    const taken = readings.filter((reading) => reading.available).map(measured);
    assert.equal(taken.length, 19);
    for (const reading of taken) {
      assert.equal(reading.seconds, 0.05);
      assert.equal(reading.tokens, 40);
      assert.ok(Math.abs(reading.joules - 2.5) < 1e-9);
      assert.equal(reading.domain, "test meter");
    }
    assert.match(refused(readings[0] as EnergyReading), /not over yet/);
  });

  it("hands a reading out once", async () => {
    const meter = new Meter();
    const monitor = meter.monitor();
    await run(meter, monitor, 6);
    await settle();
    assert.ok(monitor.sample(0, 0).available);
    assert.ok(!monitor.sample(0, 0).available);
  });

  it("does not start a second look while one is under way", async () => {
    const meter = new Meter();
    let finish = (_: number) => {};
    const slow: EnergySource = {
      ...(meter.source as Extract<EnergySource, { available: true }>),
      joules: () => {
        meter.looks++;
        return new Promise((resolve) => {
          finish = resolve;
        });
      },
    };
    const monitor = new EnergyMonitor(slow, () => meter.milliseconds);
    monitor.sample(1, 0.1);
    meter.milliseconds += 1000;
    monitor.sample(1, 0.1);
    assert.equal(meter.looks, 1);
    finish(1);
    await settle();
    meter.milliseconds += 60;
    // Counts for the window that is closing, for it ends before the look does.
    monitor.sample(2, 0.03);
    monitor.sample(3, 0.03);
    assert.equal(meter.looks, 2);
    finish(4);
    await settle();
    const reading = measured(monitor.sample(7, 0.01));
    assert.equal(reading.tokens, 5);
    assert.equal(reading.joules, 3);
  });

  it("does not charge steps with the pauses between them", async () => {
    const meter = new Meter();
    const monitor = meter.monitor();
    await run(meter, monitor, 2);
    await meter.pass(60_000, 3000);
    monitor.sample(8, 0.01);
    await settle();
    assert.match(refused(monitor.sample(8, 0.01)), /filled only 0\.0 % of 60\.010 s/);
    const next = (await run(meter, monitor, 7)).filter((reading) => reading.available);
    assert.equal(next.length, 1);
    assert.ok(measured(next[0] as EnergyReading).joules < 3);
    // Nor does it help that steps before were busy.
    await run(meter, monitor, 200);
    await meter.pass(1000, 50);
    monitor.sample(8, 0.01);
    await settle();
    assert.match(refused(monitor.sample(8, 0.01)), /filled only/);
  });

  it("reports a failed look and starts over", async () => {
    const meter = new Meter();
    const monitor = meter.monitor();
    await run(meter, monitor, 2);
    meter.failure = new Error("EIO");
    const failed = await run(meter, monitor, 6);
    assert.ok(failed.some((reading) => /failed: EIO/.test(refused(reading))));
    meter.failure = undefined;
    meter.joules = 0;
    const later = (await run(meter, monitor, 20)).filter((reading) => reading.available);
    assert.ok(later.length > 0);
    for (const reading of later) assert.ok(Math.abs(measured(reading).joules - 2.5) < 1e-9);
  });

  it("does not charge steps with energy from before a failed look", async () => {
    const meter = new Meter();
    const monitor = meter.monitor();
    await run(meter, monitor, 2);
    meter.failure = new Error("EIO");
    const failed = await run(meter, monitor, 5);
    meter.failure = undefined;
    const later = [...failed, ...(await run(meter, monitor, 30))].filter((each) => each.available);
    assert.ok(later.length > 0);
    for (const reading of later) assert.ok(Math.abs(measured(reading).joules - 2.5) < 1e-9);
  });

  it("rejects times that are none", () => {
    const monitor = new Meter().monitor();
    for (const seconds of [-1, Number.NaN, Number.POSITIVE_INFINITY]) {
      assert.throws(() => monitor.sample(1, seconds), InvalidArgumentError);
    }
  });
});

describe("power", () => {
  it("is what the source says, and null where it says none", async () => {
    const meter = new Meter();
    assert.equal(await meter.monitor().watts(), null);
    const { source } = meter;
    assert.ok(source.available);
    assert.equal(await new EnergyMonitor({ ...source, watts: async () => 612.5 }).watts(), 612.5);
    assert.equal(await new EnergyMonitor({ available: false, reason: "none" }).watts(), null);
  });
});
