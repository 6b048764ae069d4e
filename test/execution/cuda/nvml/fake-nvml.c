/*
 * A libnvidia-ml.so with one GPU, for calling it as the real one is called. Only the
 * entry points that Nexus uses, without nvmlDeviceGetUtilizationRates: a driver that
 * lacks one. Readings count up, so that a repeated one is told from a stale one.
 */
#include <stdint.h>
#include <string.h>
#include <unistd.h>

typedef struct { int marker; } Device;
static Device gpu = {42};
static int sessions = 0;
static unsigned long long millijoules = 1000000ull;

static int text(char *out, unsigned length, const char *value) {
  if (strlen(value) + 1 > length) return 7;
  strcpy(out, value);
  return 0;
}

static int known(Device *device) { return sessions > 0 ? (device == &gpu ? 0 : 2) : 1; }

int nvmlInit_v2(void) { sessions++; return 0; }
int nvmlShutdown(void) { return sessions > 0 ? (sessions--, 0) : 1; }
int nvmlSystemGetNVMLVersion(char *out, unsigned length) { return text(out, length, "13.0.fake"); }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return sessions > 0 ? 0 : 1; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **out) {
  *out = &gpu;
  return index == 0 ? 0 : 2;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, Device **out) {
  *out = &gpu;
  return strcmp(uuid, "GPU-fake") == 0 ? 0 : 6;
}
int nvmlDeviceGetIndex(Device *device, unsigned *out) { *out = 0; return known(device); }
int nvmlDeviceGetName(Device *device, char *out, unsigned length) {
  return known(device) ? known(device) : text(out, length, "NVIDIA Fake");
}
int nvmlDeviceGetUUID(Device *device, char *out, unsigned length) {
  return known(device) ? known(device) : text(out, length, "GPU-fake");
}
int nvmlDeviceGetPowerUsage(Device *device, unsigned *out) { *out = 250500; return known(device); }
int nvmlDeviceGetEnforcedPowerLimit(Device *device, unsigned *out) { *out = 700000; return known(device); }
int nvmlDeviceGetTotalEnergyConsumption(Device *device, unsigned long long *out) {
  usleep(20000);
  *out = millijoules += 500;
  return known(device);
}
int nvmlDeviceGetTemperature(Device *device, int sensor, unsigned *out) {
  *out = 30 + sensor;
  return known(device);
}
int nvmlDeviceGetClockInfo(Device *device, int clock, unsigned *out) {
  *out = 1000 * clock;
  return known(device);
}
int nvmlDeviceGetMemoryInfo(Device *device, unsigned long long *out) {
  out[0] = 150000000000ull, out[1] = 149000000000ull, out[2] = 1000000000ull;
  return known(device);
}
int nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending) {
  (void)device, *current = *pending = 0;
  return 3;
}
