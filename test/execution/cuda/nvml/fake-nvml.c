/*
 * A libnvidia-ml.so with one GPU, for calling it as the real one is called. Only the
 * entry points that Nexus uses, without nvmlDeviceGetUtilizationRates: a driver that
 * lacks one. Readings count up, so that a repeated one is told from a stale one. Any
 * GPU passes for an instance of itself.
 */
#include <stddef.h>
#include <string.h>
#include <unistd.h>

/* As in nvml.h. */
typedef struct { unsigned gpu, memory; } nvmlUtilization_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct {
  unsigned multiprocessorCount;
  unsigned sharedCopyEngineCount, sharedDecoderCount, sharedEncoderCount, sharedJpegCount, sharedOfaCount;
  unsigned gpuInstanceSliceCount, computeInstanceSliceCount;
  unsigned long long memorySizeMB;
} nvmlDeviceAttributes_t;

/* Sizes and offsets as this compiler has them, in the order of structs.test.ts. */
int fake_layout(int *out) {
#define AT(type, field) (int)offsetof(type, field)
  const int layout[] = {
    sizeof(nvmlUtilization_t), AT(nvmlUtilization_t, gpu), AT(nvmlUtilization_t, memory),
    sizeof(nvmlMemory_t), AT(nvmlMemory_t, total), AT(nvmlMemory_t, used),
    sizeof(nvmlDeviceAttributes_t), AT(nvmlDeviceAttributes_t, multiprocessorCount),
    AT(nvmlDeviceAttributes_t, gpuInstanceSliceCount), AT(nvmlDeviceAttributes_t, computeInstanceSliceCount),
    AT(nvmlDeviceAttributes_t, memorySizeMB)};
  memcpy(out, layout, sizeof layout);
  return (int)(sizeof layout / sizeof *layout);
}

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
int nvmlDeviceGetMemoryInfo(Device *device, nvmlMemory_t *out) {
  *out = (nvmlMemory_t){.total = 150000000000ull, .free = 149000000000ull, .used = 1000000000ull};
  return known(device);
}
int nvmlDeviceGetAttributes_v2(Device *device, nvmlDeviceAttributes_t *out) {
  *out = (nvmlDeviceAttributes_t){16, 1, 2, 3, 4, 5, 6, 7, 1ull << 33};
  return known(device);
}
int nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending) {
  (void)device, *current = *pending = 0;
  return 3;
}
