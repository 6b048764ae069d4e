/*
 * A CUDA driver without a GPU: host memory for device memory, everything done at once, a
 * graph as a list of calls. It is compiled by the tests (as a shared library) so that
 * signatures, structures and results are tried through the foreign-function layer, with
 * the layout of the structures as a C compiler has it.
 *
 * It judges what it is given more strictly than the real one: unknown handles, double
 * frees, pieces of different cuts are errors. Its device is an H200 as far as the driver
 * tells: 132 multiprocessors, in 15 groups of 8 and 12 more, or 66 groups of 2.
 *
 * With WITH_CUDA_H the types come from NVIDIA's header and the compiler compares every
 * prototype. FAKE_VERSION is the CUDA version it claims; functions younger than that are absent.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef FAKE_VERSION
#define FAKE_VERSION 13000
#endif

#ifdef WITH_CUDA_H
#include <cuda.h>
#undef cuGraphInstantiate
#else
typedef int CUresult, CUdevice, CUdevice_attribute, CUlimit, CUfunction_attribute, CUjit_option;
typedef int CUstreamCaptureMode, CUstreamCaptureStatus, CUdevResourceType;
typedef int CUtensorMapDataType, CUtensorMapInterleave, CUtensorMapSwizzle;
typedef int CUtensorMapL2promotion, CUtensorMapFloatOOBfill;
typedef unsigned long long CUdeviceptr;
typedef uint32_t cuuint32_t;
typedef uint64_t cuuint64_t;
typedef struct { char bytes[16]; } CUuuid;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUkern_st *CUkernel;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphNode_st *CUgraphNode;
typedef struct CUgraphExec_st *CUgraphExec;
typedef struct CUgreenCtx_st *CUgreenCtx;
typedef struct CUdevResourceDesc_st *CUdevResourceDesc;
typedef struct { _Alignas(64) uint64_t opaque[16]; } CUtensorMap;
typedef struct { int id; char pad[4]; char value[64]; } CUlaunchAttribute;
typedef struct {
  void *base_ptr;
  size_t num_bytes;
  float hitRatio;
  int hitProp, missProp;
} CUaccessPolicyWindow;
typedef struct {
  unsigned gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes;
  CUstream hStream;
  CUlaunchAttribute *attrs;
  unsigned numAttrs;
} CUlaunchConfig;
typedef struct {
  CUfunction func;
  unsigned gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes;
  void **kernelParams;
  void **extra;
  CUkernel kern;
  CUcontext ctx;
} CUDA_KERNEL_NODE_PARAMS;
typedef struct {
  CUdevResourceType type;
  unsigned char _internal_padding[92];
  union {
    struct { unsigned smCount; } sm;
    unsigned char _oversize[48];
  };
} CUdevResource;
#endif

#define CODE(n) ((CUresult)(n))
#define OK CODE(0)
#define INVALID CODE(1)
#define BAD_HANDLE CODE(400)

/* ---- What the tests steer and read -------------------------------------------------- */

static char fail_call[64];
static int fail_code, fail_after, live;
static char text[1 << 16];
static size_t text_used;

/* The call fails with `code` once, after `after` successes. */
int fake_fail(const char *call, int code, int after) {
  snprintf(fail_call, sizeof fail_call, "%s", call);
  fail_code = code;
  fail_after = after;
  return 0;
}
/* Objects and allocations that nobody has destroyed. */
int fake_live(void) { return live; }
/* Takes what was noted since the last time. */
int fake_take_notes(char *out, size_t bytes) {
  snprintf(out, bytes, "%s", text);
  text_used = 0;
  text[0] = 0;
  return 0;
}
/* Sizes and offsets as this compiler has them, in the order of structs.test.ts. */
int fake_layout(int *out) {
#define AT(type, field) (int)offsetof(type, field)
  const int layout[] = {
    sizeof(CUlaunchConfig), AT(CUlaunchConfig, gridDimX), AT(CUlaunchConfig, gridDimY), AT(CUlaunchConfig, gridDimZ),
    AT(CUlaunchConfig, blockDimX), AT(CUlaunchConfig, blockDimY), AT(CUlaunchConfig, blockDimZ),
    AT(CUlaunchConfig, sharedMemBytes), AT(CUlaunchConfig, hStream), AT(CUlaunchConfig, attrs), AT(CUlaunchConfig, numAttrs),
    sizeof(CUlaunchAttribute), AT(CUlaunchAttribute, id), AT(CUlaunchAttribute, value),
    sizeof(CUaccessPolicyWindow), AT(CUaccessPolicyWindow, base_ptr), AT(CUaccessPolicyWindow, num_bytes),
    AT(CUaccessPolicyWindow, hitRatio), AT(CUaccessPolicyWindow, hitProp), AT(CUaccessPolicyWindow, missProp),
    sizeof(CUDA_KERNEL_NODE_PARAMS), AT(CUDA_KERNEL_NODE_PARAMS, func), AT(CUDA_KERNEL_NODE_PARAMS, gridDimX),
    AT(CUDA_KERNEL_NODE_PARAMS, gridDimY), AT(CUDA_KERNEL_NODE_PARAMS, gridDimZ), AT(CUDA_KERNEL_NODE_PARAMS, blockDimX),
    AT(CUDA_KERNEL_NODE_PARAMS, blockDimY), AT(CUDA_KERNEL_NODE_PARAMS, blockDimZ),
    AT(CUDA_KERNEL_NODE_PARAMS, sharedMemBytes), AT(CUDA_KERNEL_NODE_PARAMS, kernelParams),
    AT(CUDA_KERNEL_NODE_PARAMS, extra), AT(CUDA_KERNEL_NODE_PARAMS, kern), AT(CUDA_KERNEL_NODE_PARAMS, ctx),
    sizeof(CUdevResource), AT(CUdevResource, type), AT(CUdevResource, sm),
    sizeof(CUtensorMap), _Alignof(CUtensorMap)};
  memcpy(out, layout, sizeof layout);
  return (int)(sizeof layout / sizeof *layout);
}
static int failing(const char *call) {
  if (strcmp(call, fail_call) || fail_after-- > 0) return 0;
  fail_call[0] = 0;
  return 1;
}
#define ENTER if (failing(__func__)) return CODE(fail_code)
#define NOTE(...) do { \
  if (text_used < sizeof text - 256) text_used += (size_t)snprintf(text + text_used, 256, __VA_ARGS__); \
} while (0)

/* ---- Handles ---------------------------------------------------------------------------- */

enum { CONTEXT = 0x51, STREAM, EVENT, MODULE, FUNCTION, GRAPH, NODE, EXEC, GREEN, DESCRIPTION };
typedef struct { int kind; } Head;
static void *make(int kind, size_t bytes) {
  Head *h = calloc(1, bytes);
  h->kind = kind;
  live++;
  return h;
}
/* Handles are not returned to the C library, so that a stale one is still recognised. */
static int destroy(void *p, int kind) {
  if (!p || ((Head *)p)->kind != kind) return 0;
  ((Head *)p)->kind = 0;
  live--;
  return 1;
}
static int is(void *p, int kind) { return p && ((Head *)p)->kind == kind; }

/* ---- Start, devices, contexts ----------------------------------------------------------- */

static struct { Head h; } context = {{CONTEXT}};
static int retained, current;
static unsigned long long persisting;

CUresult cuDriverGetVersion(int *version) { ENTER; *version = FAKE_VERSION; return OK; }

#if FAKE_VERSION >= 12000
CUresult cuInit(unsigned flags) {
  ENTER;
  const char *visible = getenv("CUDA_VISIBLE_DEVICES");
  if (visible && !*visible) return CODE(100);
  return flags ? INVALID : OK;
}
CUresult cuGetErrorName(CUresult code, const char **name) {
  static const struct { int code; const char *name; } names[] = {
    {1, "CUDA_ERROR_INVALID_VALUE"}, {2, "CUDA_ERROR_OUT_OF_MEMORY"}, {100, "CUDA_ERROR_NO_DEVICE"},
    {101, "CUDA_ERROR_INVALID_DEVICE"}, {218, "CUDA_ERROR_INVALID_PTX"}, {400, "CUDA_ERROR_INVALID_HANDLE"},
    {500, "CUDA_ERROR_NOT_FOUND"}, {600, "CUDA_ERROR_NOT_READY"}, {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
    {802, "CUDA_ERROR_SYSTEM_NOT_READY"}, {915, "CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION"}};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if ((int)code == names[i].code) return *name = names[i].name, OK;
  return *name = NULL, INVALID;
}
CUresult cuDeviceGetCount(int *count) { ENTER; *count = 1; return OK; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  ENTER;
  if (ordinal != 0) return CODE(101);
  *device = 7; /* a handle, not the ordinal */
  return OK;
}
CUresult cuDeviceGetName(char *name, int length, CUdevice d) {
  return d == 7 ? (snprintf(name, (size_t)length, "Fake H200"), OK) : CODE(101);
}
CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice d) {
  for (int i = 0; i < 16; i++) uuid->bytes[i] = (char)(0xf0 - 0x0f * i);
  return d == 7 ? OK : CODE(101);
}
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice d) { *bytes = 150ull << 30; return d == 7 ? OK : CODE(101); }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice d) {
  if (d != 7) return CODE(101);
  switch ((int)which) {
    case 16: *value = 132; return OK;
    case 36: *value = 3201000; return OK;
    case 37: *value = 6144; return OK;
    case 38: *value = 50 << 20; return OK;
    case 75: *value = 9; return OK;
    case 76: *value = 0; return OK;
    case 88: *value = 1; return OK;
    case 97: *value = 232448; return OK;
    case 108: *value = 31 << 20; return OK;
    case 109: *value = 128 << 20; return OK;
  }
  return INVALID;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) {
  ENTER;
  if (d != 7) return CODE(101);
  retained++, live++;
  *c = (CUcontext)&context;
  return OK;
}
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice d) {
  ENTER;
  if (d != 7 || !retained) return CODE(201);
  retained--, live--;
  return OK;
}
CUresult cuCtxSetCurrent(CUcontext c) {
  ENTER;
  if (c && !is(c, CONTEXT)) return CODE(201);
  current = c != NULL;
  return OK;
}
CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = 0, *greatest = -5; return current ? OK : CODE(201); }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) {
  ENTER;
  if ((int)limit != 6) return INVALID;
  persisting = value;
  NOTE("persisting %zu\n", value);
  return OK;
}
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) {
  ENTER;
  if ((int)limit != 6) return INVALID;
  *value = persisting;
  return OK;
}
CUresult cuCtxResetPersistingL2Cache(void) { ENTER; NOTE("reset persisting\n"); return OK; }

/* ---- Memory ------------------------------------------------------------------------------ */

#define MEMORY (1ull << 26)
static struct { CUdeviceptr at; size_t bytes; int pinned; } blocks[4096];
static size_t allocated;

static CUresult take(void **at, size_t bytes, int pinned) {
  if (!current) return CODE(201);
  if (!bytes) return INVALID;
  if (!pinned && allocated + bytes > MEMORY) return CODE(2);
  for (size_t i = 0; i < 4096; i++) {
    if (blocks[i].at) continue;
    void *p = NULL;
    if (posix_memalign(&p, 512, bytes)) return CODE(2);
    memset(p, 0xA5, bytes);
    blocks[i].at = (CUdeviceptr)(uintptr_t)p, blocks[i].bytes = bytes, blocks[i].pinned = pinned;
    if (!pinned) allocated += bytes;
    live++;
    *at = p;
    return OK;
  }
  return CODE(2);
}
static CUresult give(CUdeviceptr at, int pinned) {
  for (size_t i = 0; at && i < 4096; i++) {
    if (blocks[i].at != at || blocks[i].pinned != pinned) continue;
    if (!pinned) allocated -= blocks[i].bytes;
    free((void *)(uintptr_t)at);
    blocks[i].at = 0;
    live--;
    return OK;
  }
  return INVALID;
}
static int within(CUdeviceptr at, size_t bytes, int pinned) {
  for (size_t i = 0; i < 4096; i++)
    if (blocks[i].at && blocks[i].pinned == pinned && at >= blocks[i].at && at + bytes <= blocks[i].at + blocks[i].bytes) return 1;
  return 0;
}
CUresult cuMemGetInfo_v2(size_t *available, size_t *total) { ENTER; *available = MEMORY - allocated, *total = MEMORY; return OK; }
CUresult cuMemAlloc_v2(CUdeviceptr *at, size_t bytes) {
  ENTER;
  void *p = NULL;
  CUresult code = take(&p, bytes, 0);
  if (code == OK) *at = (CUdeviceptr)(uintptr_t)p;
  return code;
}
CUresult cuMemFree_v2(CUdeviceptr at) { ENTER; return give(at, 0); }
CUresult cuMemHostAlloc(void **at, size_t bytes, unsigned flags) { ENTER; return flags == 3 ? take(at, bytes, 1) : INVALID; }
CUresult cuMemFreeHost(void *at) { ENTER; return give((CUdeviceptr)(uintptr_t)at, 1); }

/* ---- Streams, work, graphs ------------------------------------------------------------------ */

struct CUfunc_st { Head h; int parameters; size_t sizes[4]; };
struct CUgraphNode_st {
  Head h;
  int op; /* 1 fill bytes, 2 fill words, 3 copy, 4 kernel */
  CUdeviceptr target, source;
  unsigned value;
  size_t count;
  CUlaunchConfig config;
  CUfunction fn;
  uint64_t values[4];
  void *pointers[4];
  CUgraphNode next;
};
/* `joined`: the streams that take part, while it is being captured. */
struct CUgraph_st { Head h; CUgraphNode first, last; CUstream joined[8]; int streams; };
struct CUgraphExec_st { Head h; CUgraphNode first; CUgraphNode originals[64]; };
struct CUstream_st { Head h; CUgraph capturing; int priority; CUgreenCtx green; };
struct CUevent_st { Head h; int timing, asked; long long time; CUgraph captured; };
struct CUgreenCtx_st { Head h; unsigned multiprocessors; };

static long long ticks;

static CUresult run(CUgraphNode n) {
  switch (n->op) {
    case 1: memset((void *)(uintptr_t)n->target, (int)n->value, n->count); return OK;
    case 2: for (size_t i = 0; i < n->count; i++) ((uint32_t *)(uintptr_t)n->target)[i] = n->value; return OK;
    case 3: memcpy((void *)(uintptr_t)n->target, (void *)(uintptr_t)n->source, n->count); return OK;
  }
  CUlaunchConfig *c = &n->config;
  NOTE("kernel grid %u %u %u block %u %u %u shared %u attributes %u values", c->gridDimX, c->gridDimY, c->gridDimZ,
       c->blockDimX, c->blockDimY, c->blockDimZ, c->sharedMemBytes, c->numAttrs);
  for (int i = 0; i < n->fn->parameters; i++) NOTE(" %llu", (unsigned long long)n->values[i]);
  if (c->numAttrs) NOTE(" attribute %d = %d", (int)c->attrs[0].id, *(int *)&c->attrs[0].value);
  NOTE("\n");
  return OK;
}
static CUresult submit(CUstream s, struct CUgraphNode_st n) {
  if (!is(s, STREAM)) return BAD_HANDLE;
  ticks += 1000;
  if (!s->capturing) return run(&n);
  CUgraphNode kept = make(NODE, sizeof *kept);
  Head h = kept->h;
  *kept = n;
  kept->h = h;
  for (int i = 0; i < 4; i++) kept->pointers[i] = &kept->values[i];
  if (s->capturing->last) s->capturing->last->next = kept;
  else s->capturing->first = kept;
  s->capturing->last = kept;
  return OK;
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void *source, size_t bytes, CUstream s) {
  ENTER;
  if (!within(target, bytes, 0)) return INVALID;
  return submit(s, (struct CUgraphNode_st){.op = 3, .target = target, .source = (CUdeviceptr)(uintptr_t)source, .count = bytes});
}
CUresult cuMemcpyDtoHAsync_v2(void *target, CUdeviceptr source, size_t bytes, CUstream s) {
  ENTER;
  if (!within(source, bytes, 0) || !within((CUdeviceptr)(uintptr_t)target, bytes, 1)) return INVALID;
  return submit(s, (struct CUgraphNode_st){.op = 3, .target = (CUdeviceptr)(uintptr_t)target, .source = source, .count = bytes});
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr target, CUdeviceptr source, size_t bytes, CUstream s) {
  ENTER;
  if (!within(target, bytes, 0) || !within(source, bytes, 0)) return INVALID;
  return submit(s, (struct CUgraphNode_st){.op = 3, .target = target, .source = source, .count = bytes});
}
CUresult cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t count, CUstream s) {
  ENTER;
  if (!within(target, count, 0)) return INVALID;
  return submit(s, (struct CUgraphNode_st){.op = 1, .target = target, .value = value, .count = count});
}
CUresult cuMemsetD32Async(CUdeviceptr target, unsigned value, size_t count, CUstream s) {
  ENTER;
  if (!within(target, 4 * count, 0)) return INVALID;
  return submit(s, (struct CUgraphNode_st){.op = 2, .target = target, .value = value, .count = count});
}
static CUstream new_stream(int priority, CUgreenCtx green) {
  CUstream s = make(STREAM, sizeof *s);
  s->priority = priority, s->green = green;
  return s;
}
CUresult cuStreamCreateWithPriority(CUstream *s, unsigned flags, int priority) {
  ENTER;
  if (flags != 1 || priority > 0 || priority < -5) return INVALID;
  *s = new_stream(priority, NULL);
  NOTE("stream priority %d\n", priority);
  return OK;
}
CUresult cuStreamDestroy_v2(CUstream s) { ENTER; return destroy(s, STREAM) ? OK : BAD_HANDLE; }
CUresult cuStreamSynchronize(CUstream s) { ENTER; return is(s, STREAM) ? OK : BAD_HANDLE; }
CUresult cuStreamWaitEvent(CUstream s, CUevent e, unsigned flags) {
  ENTER;
  if (!is(s, STREAM) || !is(e, EVENT) || flags) return BAD_HANDLE;
  CUgraph g = e->captured;
  if (!g || s->capturing == g) return OK;
  if (!g->streams || s->capturing || g->streams == 8) return CODE(905);
  g->joined[g->streams++] = s;
  s->capturing = g;
  return OK;
}
CUresult cuEventCreate(CUevent *e, unsigned flags) {
  ENTER;
  if (flags != 0 && flags != 2) return INVALID;
  *e = make(EVENT, sizeof **e);
  (*e)->timing = flags == 0;
  return OK;
}
CUresult cuEventDestroy_v2(CUevent e) { ENTER; return destroy(e, EVENT) ? OK : BAD_HANDLE; }
CUresult cuEventRecord(CUevent e, CUstream s) {
  ENTER;
  if (!is(e, EVENT) || !is(s, STREAM)) return BAD_HANDLE;
  e->time = ticks, e->asked = 0, e->captured = s->capturing;
  return OK;
}
/* Done when asked for the second time. */
CUresult cuEventQuery(CUevent e) { ENTER; return !is(e, EVENT) ? BAD_HANDLE : e->asked++ ? OK : CODE(600); }
CUresult cuEventElapsedTime(float *ms, CUevent from, CUevent to) {
  ENTER;
  if (!is(from, EVENT) || !is(to, EVENT) || !from->timing || !to->timing) return BAD_HANDLE;
  *ms = (float)(to->time - from->time) / 1000;
  return OK;
}
CUresult cuStreamBeginCapture_v2(CUstream s, CUstreamCaptureMode mode) {
  ENTER;
  if (!is(s, STREAM) || (int)mode != 2 || s->capturing) return BAD_HANDLE;
  s->capturing = make(GRAPH, sizeof *s->capturing);
  s->capturing->joined[s->capturing->streams++] = s;
  return OK;
}
CUresult cuStreamGetCaptureInfo_v2(CUstream s, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph,
                                   const CUgraphNode **nodes, size_t *count) {
  ENTER;
  if (!is(s, STREAM)) return BAD_HANDLE;
  *(int *)status = s->capturing ? 1 : 0;
  if (id) *id = 1;
  if (!s->capturing) return OK;
  if (graph) *graph = s->capturing;
  *nodes = (const CUgraphNode *)&s->capturing->last;
  *count = s->capturing->last ? 1 : 0;
  return OK;
}
CUresult cuStreamEndCapture(CUstream s, CUgraph *graph) {
  ENTER;
  if (!is(s, STREAM) || !s->capturing) return BAD_HANDLE;
  CUgraph g = *graph = s->capturing;
  if (g->joined[0] != s) return CODE(903);
  while (g->streams) g->joined[--g->streams]->capturing = NULL;
  return OK;
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags) {
  ENTER;
  /* 8: nodes keep the priorities of the streams they were captured on. */
  if (!is(graph, GRAPH) || flags != 8) return BAD_HANDLE;
  *exec = make(EXEC, sizeof **exec);
  CUgraphNode *end = &(*exec)->first;
  int i = 0;
  for (CUgraphNode n = graph->first; n; n = n->next) {
    CUgraphNode copy = malloc(sizeof *copy);
    *copy = *n;
    copy->next = NULL;
    (*exec)->originals[i++] = n;
    *end = copy;
    end = &copy->next;
  }
  return OK;
}
CUresult cuGraphUpload(CUgraphExec exec, CUstream s) { ENTER; return is(exec, EXEC) && is(s, STREAM) ? OK : BAD_HANDLE; }
CUresult cuGraphLaunch(CUgraphExec exec, CUstream s) {
  ENTER;
  if (!is(exec, EXEC) || !is(s, STREAM)) return BAD_HANDLE;
  for (CUgraphNode n = exec->first; n; n = n->next) run(n);
  return OK;
}
CUresult cuGraphKernelNodeGetParams_v2(CUgraphNode n, CUDA_KERNEL_NODE_PARAMS *p) {
  ENTER;
  if (!is(n, NODE) || n->op != 4) return BAD_HANDLE;
  CUlaunchConfig *c = &n->config;
  *p = (CUDA_KERNEL_NODE_PARAMS){.func = n->fn, .gridDimX = c->gridDimX, .gridDimY = c->gridDimY, .gridDimZ = c->gridDimZ,
    .blockDimX = c->blockDimX, .blockDimY = c->blockDimY, .blockDimZ = c->blockDimZ, .sharedMemBytes = c->sharedMemBytes,
    .kernelParams = n->pointers, .ctx = (CUcontext)&context};
  return OK;
}
CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode n, const CUDA_KERNEL_NODE_PARAMS *p) {
  ENTER;
  if (!is(exec, EXEC) || !is(n, NODE) || n->op != 4 || p->func != n->fn || p->ctx != (CUcontext)&context) return BAD_HANDLE;
  int i = 0;
  for (CUgraphNode copy = exec->first; copy; copy = copy->next, i++) {
    if (exec->originals[i] != n) continue;
    CUlaunchConfig *c = &copy->config;
    c->gridDimX = p->gridDimX, c->gridDimY = p->gridDimY, c->gridDimZ = p->gridDimZ;
    c->blockDimX = p->blockDimX, c->blockDimY = p->blockDimY, c->blockDimZ = p->blockDimZ;
    c->sharedMemBytes = p->sharedMemBytes;
    for (int j = 0; j < n->fn->parameters; j++) memcpy(&copy->values[j], p->kernelParams[j], n->fn->sizes[j]);
    return OK;
  }
  return BAD_HANDLE;
}
CUresult cuGraphDestroy(CUgraph graph) {
  ENTER;
  if (!is(graph, GRAPH)) return BAD_HANDLE;
  for (CUgraphNode n = graph->first; n; n = n->next) destroy(n, NODE);
  return destroy(graph, GRAPH) ? OK : BAD_HANDLE;
}
CUresult cuGraphExecDestroy(CUgraphExec exec) { ENTER; return destroy(exec, EXEC) ? OK : BAD_HANDLE; }

/* ---- Modules and launches --------------------------------------------------------------------- */

struct CUmod_st { Head h; struct CUfunc_st kernel; };

CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned options, CUjit_option *option, void **value) {
  ENTER;
  if (options != 2 || (int)option[0] != 5 || (int)option[1] != 6 || (size_t)value[1] < 64) return INVALID;
  if (!memcmp(image, "bad", 3)) {
    snprintf(value[0], (size_t)value[1], "ptxas fatal: %s", (const char *)image);
    return CODE(218);
  }
  *module = make(MODULE, sizeof **module);
  (*module)->kernel = (struct CUfunc_st){.h = {FUNCTION}, .parameters = 3, .sizes = {8, 4, 8}};
  return OK;
}
CUresult cuModuleUnload(CUmodule module) { ENTER; return destroy(module, MODULE) ? OK : BAD_HANDLE; }
CUresult cuModuleGetFunction(CUfunction *fn, CUmodule module, const char *name) {
  ENTER;
  if (!is(module, MODULE)) return BAD_HANDLE;
  if (strcmp(name, "kernel")) return CODE(500);
  *fn = &module->kernel;
  return OK;
}
CUresult cuFuncSetAttribute(CUfunction fn, CUfunction_attribute which, int value) {
  ENTER;
  if (!is(fn, FUNCTION) || (int)which != 8) return INVALID;
  NOTE("dynamic shared %d\n", value);
  return OK;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction fn, void **parameters, void **extra) {
  ENTER;
  if (!is(fn, FUNCTION) || extra) return BAD_HANDLE;
  struct CUgraphNode_st n = {.op = 4, .config = *config, .fn = fn};
  for (int i = 0; i < fn->parameters; i++) memcpy(&n.values[i], parameters[i], fn->sizes[i]);
  return submit(config->hStream, n);
}
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *dims, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  ENTER;
  if ((uintptr_t)map % 64 || rank < 1 || rank > 5) return INVALID;
  NOTE("tensor map of %d at %p dims", (int)type, address);
  for (cuuint32_t i = 0; i < rank; i++) NOTE(" %llu", (unsigned long long)dims[i]);
  NOTE(" strides");
  for (cuuint32_t i = 0; i + 1 < rank; i++) {
    if (strides[i] % 16) return INVALID;
    NOTE(" %llu", (unsigned long long)strides[i]);
  }
  NOTE(" box");
  for (cuuint32_t i = 0; i < rank; i++) NOTE(" %u", box[i]);
  NOTE(" steps");
  for (cuuint32_t i = 0; i < rank; i++) NOTE(" %u", steps[i]);
  NOTE(" interleave %d swizzle %d promotion %d fill %d\n", (int)interleave, (int)swizzle, (int)promotion, (int)fill);
  /* What a map holds is the driver's own; here, how many dimensions. */
  memset(map, (int)rank, sizeof *map);
  return OK;
}
#endif

#if FAKE_VERSION >= 12040
CUresult cuFuncGetParamInfo(CUfunction fn, size_t index, size_t *offset, size_t *size) {
  ENTER;
  if (!is(fn, FUNCTION)) return BAD_HANDLE;
  if (index >= (size_t)fn->parameters) return INVALID;
  *offset = 8 * index, *size = fn->sizes[index];
  return OK;
}

/* ---- Green contexts ------------------------------------------------------------------------------ */

/* A piece remembers its cut and its first multiprocessor. */
typedef struct { int cut, from; } Stamp;
static int cuts;
struct CUdevResourceDesc_st { Head h; unsigned multiprocessors; unsigned char mask[132]; };
static unsigned char owned[132];
struct Green { struct CUgreenCtx_st g; unsigned char mask[132]; };

CUresult cuDeviceGetDevResource(CUdevice d, CUdevResource *r, CUdevResourceType type) {
  ENTER;
  if (d != 7 || (int)type != 1) return CODE(914);
  memset(r, 0, sizeof *r);
  *(int *)&r->type = 1;
  r->sm.smCount = 132;
  return OK;
}
static void piece(CUdevResource *r, int from, unsigned count) {
  memset(r, 0, sizeof *r);
  if (!count) return;
  *(int *)&r->type = 1;
  r->sm.smCount = count;
  *(Stamp *)r->_internal_padding = (Stamp){cuts, from};
}
CUresult cuDevSmResourceSplitByCount(CUdevResource *result, unsigned *count, const CUdevResource *input,
                                     CUdevResource *rest, unsigned flags, unsigned least) {
  ENTER;
  if (input->sm.smCount != 132 || flags > 1 || least > 132) return CODE(915);
  unsigned step = flags ? 2 : 8;
  unsigned size = (least + step - 1) / step * step;
  unsigned groups = flags ? 132 / size : 120 / size;
  if (!result) return *count = groups, OK;
  if (*count > groups) *count = groups;
  cuts++;
  for (unsigned i = 0; i < *count; i++) piece(&result[i], (int)(i * size), size);
  if (rest) piece(rest, (int)(*count * size), 132 - *count * size);
  return OK;
}
CUresult cuDevResourceGenerateDesc(CUdevResourceDesc *out, CUdevResource *pieces, unsigned count) {
  ENTER;
  CUdevResourceDesc d = calloc(1, sizeof *d);
  d->h.kind = DESCRIPTION;
  if (!count) return CODE(915);
  for (unsigned i = 0; i < count; i++) {
    Stamp *s = (Stamp *)pieces[i]._internal_padding;
    if (s->cut != cuts) return CODE(915);
    for (unsigned j = 0; j < pieces[i].sm.smCount; j++) {
      if (d->mask[s->from + (int)j]++) return CODE(915);
      d->multiprocessors++;
    }
  }
  *out = d;
  return OK;
}
CUresult cuGreenCtxCreate(CUgreenCtx *out, CUdevResourceDesc d, CUdevice device, unsigned flags) {
  ENTER;
  if (!is(d, DESCRIPTION) || device != 7 || flags != 1) return INVALID;
  struct Green *g = make(GREEN, sizeof *g);
  g->g.multiprocessors = d->multiprocessors;
  memcpy(g->mask, d->mask, sizeof g->mask);
  int overlap = 0;
  for (int i = 0; i < 132; i++) overlap += owned[i] && d->mask[i], owned[i] += d->mask[i];
  NOTE("green %u%s\n", d->multiprocessors, overlap ? " overlapping" : "");
  *out = (CUgreenCtx)g;
  return OK;
}
CUresult cuGreenCtxDestroy(CUgreenCtx green) {
  ENTER;
  if (!destroy(green, GREEN)) return BAD_HANDLE;
  for (int i = 0; i < 132; i++) owned[i] -= ((struct Green *)green)->mask[i];
  return OK;
}
#endif

#if FAKE_VERSION >= 12050
CUresult cuGreenCtxStreamCreate(CUstream *s, CUgreenCtx green, unsigned flags, int priority) {
  ENTER;
  if (!is(green, GREEN) || flags != 1) return INVALID;
  *s = new_stream(priority, green);
  NOTE("stream of %u priority %d\n", green->multiprocessors, priority);
  return OK;
}
#endif
