// A stand-in for NVIDIA's driver library libcuda.so.1 on machines without a GPU: real pycuda and real cuda-bindings run on
// it. Kernels are host code, compiled from the same .cu; "device" memory is host memory.
//
// It keeps the rules that programs break: a context is current per thread; a stream does nothing until somebody waits for
// it, so a result read too early is still poison; what may not be called while a stream captures spoils the capture; a
// write beside an allocation and any other fault sticks to the context; only mapped host memory has a device pointer.
// It says nothing of speed, overlap or coherency. The functions named standin_* are for the tests.
#define _GNU_SOURCE
#include <cuda.h>
#include <dlfcn.h>
#include <elf.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { POISON = 0xCD, REDZONE = 256, MOST_ARGUMENTS = 256 };
static const size_t TOTAL = (size_t)8 << 30;  // bytes of memory, as it says

// ---- What every call goes through: the lock, its count, a fault that was asked for, the context -----------------------

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static CUresult lost;  // what every call answers once the context is broken
static struct probe { char name[64]; long calls, fail_after, fail_until; CUresult fail_with; } probes[512];

static struct probe* probe_of(const char* function) {
  char name[64];
  snprintf(name, sizeof name, "%s", function);
  char* version = strstr(name, "_v");
  if (version && version[2] >= '0' && version[2] <= '9') *version = 0;
  struct probe* p = probes;
  while (p->name[0] && strcmp(p->name, name)) ++p;
  if (!p->name[0]) strcpy(p->name, name);
  return p;
}

static CUresult counted(const char* function) {
  struct probe* p = probe_of(function);
  long call = p->calls++;
  return call >= p->fail_after && call < p->fail_until ? p->fail_with : CUDA_SUCCESS;
}

static struct CUctx_st { int retained; } primary;
static __thread CUcontext stack[16];
static __thread int depth;
static __thread struct CUgraph_st* recording;  // of this thread: spoiled by what may not be called meanwhile
static bool initialised;
static void spoil(void);

static void unlock(int* unused) { (void)unused; pthread_mutex_unlock(&lock); }
#define LOCK __attribute__((cleanup(unlock))) int locked __attribute__((unused)) = pthread_mutex_lock(&lock)
#define COUNT LOCK; { CUresult fault = counted(__func__); if (fault) return fault; }
#define ENTER COUNT; if (!initialised) return CUDA_ERROR_NOT_INITIALIZED; if (!depth) return CUDA_ERROR_INVALID_CONTEXT; if (lost) return lost
#define NOT_WHILE_RECORDING ENTER; if (recording) { spoil(); return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED; }

// ---- Memory ----------------------------------------------------------------------------------------------------------

enum kind { DEVICE, PINNED };
static struct block { unsigned char* start; size_t size; enum kind kind; unsigned flags; struct block* next; }* blocks;

static struct block* block_of(const void* address) {
  for (struct block* b = blocks; b; b = b->next)
    if ((unsigned char*)address >= b->start && (unsigned char*)address < b->start + b->size) return b;
  return NULL;
}

static void* new_block(size_t size, enum kind kind, unsigned flags) {
  struct block* b = malloc(sizeof *b);
  unsigned char* whole = aligned_alloc(4096, (size + 2 * REDZONE + 4095) / 4096 * 4096);
  memset(whole, POISON, size + 2 * REDZONE);
  *b = (struct block){whole + REDZONE, size, kind, flags, blocks};
  blocks = b;
  return b->start;
}

static size_t available(void) {
  size_t left = TOTAL;
  for (struct block* b = blocks; b; b = b->next) left -= b->size;
  return left;
}

static bool free_block(const void* start, enum kind kind) {
  for (struct block** b = &blocks; *b; b = &(*b)->next)
    if ((*b)->start == start && (*b)->kind == kind) {
      struct block* gone = *b;
      *b = gone->next;
      memset(gone->start, POISON, gone->size);
      free(gone->start - REDZONE);
      free(gone);
      return true;
    }
  return false;
}

static bool inside(CUdeviceptr address, size_t size) {
  struct block* b = block_of((void*)address);
  return b && (unsigned char*)address + size <= b->start + b->size;
}

static void look_for_wild_writes(void) {
  for (struct block* b = blocks; b; b = b->next)
    for (int i = 1; i <= REDZONE; ++i)
      if (b->start[-i] != POISON || b->start[b->size + i - 1] != POISON) lost = CUDA_ERROR_ILLEGAL_ADDRESS;
}

CUresult cuMemAlloc(CUdeviceptr* address, size_t size) {
  NOT_WHILE_RECORDING;
  if (!size) return CUDA_ERROR_INVALID_VALUE;
  if (size > available()) return CUDA_ERROR_OUT_OF_MEMORY;
  *address = (CUdeviceptr)new_block(size, DEVICE, 0);
  return CUDA_SUCCESS;
}
CUresult cuMemHostAlloc(void** address, size_t size, unsigned flags) {
  NOT_WHILE_RECORDING;
  if (!size) return CUDA_ERROR_INVALID_VALUE;
  if (size > available()) return CUDA_ERROR_OUT_OF_MEMORY;
  *address = new_block(size, PINNED, flags);
  return CUDA_SUCCESS;
}
CUresult cuMemHostGetDevicePointer(CUdeviceptr* address, void* host, unsigned flags) {
  ENTER;
  struct block* b = block_of(host);
  if (flags || !b || b->kind != PINNED || !(b->flags & CU_MEMHOSTALLOC_DEVICEMAP)) return CUDA_ERROR_INVALID_VALUE;
  *address = (CUdeviceptr)host;
  return CUDA_SUCCESS;
}
CUresult cuMemHostGetFlags(unsigned* flags, void* host) {
  ENTER;
  struct block* b = block_of(host);
  if (!b) return CUDA_ERROR_INVALID_VALUE;
  *flags = b->flags;
  return CUDA_SUCCESS;
}
CUresult cuMemGetInfo(size_t* left, size_t* total) {
  ENTER;
  *left = available();
  *total = TOTAL;
  return CUDA_SUCCESS;
}

// ---- Streams: a list of what is to be done, done when somebody waits ------------------------------------------------------

typedef struct {
  int parameters;
  const unsigned* sizes;
  const unsigned* offsets;
  void (*run)(const char* arguments, const unsigned* grid_and_block);
} Kernel;  // exported by the host build of a .cu, see launch.h

typedef struct op {
  enum { LAUNCH, COPY, FILL, RECORD, HOST } kind;
  const Kernel* kernel;
  unsigned shape[6];
  char arguments[MOST_ARGUMENTS] __attribute__((aligned(16)));
  void* to;
  const void* from;
  size_t size;
  unsigned char value;
  CUevent event;
  CUhostFn call;
  struct op* next;
} Op;
typedef struct { Op *first, **last; } Ops;

struct CUevent_st { bool recorded, pending; double time_ms; CUstream stream; };
struct CUstream_st { unsigned magic; Ops ops; struct CUgraph_st* graph; struct CUstream_st* next; };
struct CUgraph_st { Ops ops; bool spoiled; };
static struct CUstream_st* streams;
enum { STREAM = 0x57EA };

static void spoil(void) { recording->spoiled = true; }
static void push(Ops* ops, const Op* op) {
  Op* copy = malloc(sizeof *copy);
  *copy = *op;
  copy->next = NULL;
  if (!ops->first) ops->last = &ops->first;
  *ops->last = copy;
  ops->last = &copy->next;
}
static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}
static void perform(const Op* op) {
  switch (op->kind) {
    case LAUNCH: op->kernel->run(op->arguments, op->shape); break;
    case COPY: memmove(op->to, op->from, op->size); break;
    case FILL: memset(op->to, op->value, op->size); break;
    case RECORD: op->event->time_ms = now_ms(); op->event->pending = false; break;
    case HOST:  // Python, which may wait for a thread that waits for us
      pthread_mutex_unlock(&lock);
      op->call(op->to);
      pthread_mutex_lock(&lock);
  }
}
static CUresult drain(CUstream stream) {
  while (stream->ops.first && !lost) {
    Op* op = stream->ops.first;
    stream->ops.first = op->next;
    perform(op);
    free(op);
    look_for_wild_writes();
  }
  return lost;
}
// The default stream does its work at once; a capturing one remembers it.
static CUresult enqueue(CUstream stream, const Op* op) {
  if (stream && stream->magic != STREAM) return CUDA_ERROR_INVALID_HANDLE;
  if (!stream) perform(op);
  else if (!stream->graph) push(&stream->ops, op);
  else if (stream->graph->spoiled) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  else push(&stream->graph->ops, op);
  return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
  ENTER;
  if (flags > 1) return CUDA_ERROR_INVALID_VALUE;
  *stream = calloc(1, sizeof **stream);
  **stream = (struct CUstream_st){STREAM, {0}, NULL, streams};
  streams = *stream;
  return CUDA_SUCCESS;
}
CUresult cuStreamDestroy(CUstream stream) {
  ENTER;
  for (CUstream* s = &streams; *s; s = &(*s)->next)
    if (*s == stream) {
      drain(stream);
      *s = stream->next;
      stream->magic = 0;
      free(stream);
      return CUDA_SUCCESS;
    }
  return CUDA_ERROR_INVALID_HANDLE;
}
CUresult cuStreamSynchronize(CUstream stream) { NOT_WHILE_RECORDING; return stream ? drain(stream) : CUDA_SUCCESS; }
CUresult cuStreamQuery(CUstream stream) {
  NOT_WHILE_RECORDING;
  if (!stream || !stream->ops.first) return CUDA_SUCCESS;
  drain(stream);
  return CUDA_ERROR_NOT_READY;
}
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) {
  ENTER;
  (void)stream, (void)flags;
  return event->pending ? drain(event->stream) : CUDA_SUCCESS;
}
CUresult cuCtxSynchronize(void) {
  NOT_WHILE_RECORDING;
  for (CUstream s = streams; s; s = s->next) drain(s);
  return lost;
}
CUresult cuMemFree(CUdeviceptr address) {
  NOT_WHILE_RECORDING;
  for (CUstream s = streams; s; s = s->next) drain(s);
  look_for_wild_writes();
  if (lost) return lost;
  return free_block((void*)address, DEVICE) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuMemFreeHost(void* address) {
  NOT_WHILE_RECORDING;
  look_for_wild_writes();
  if (lost) return lost;
  return free_block(address, PINNED) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static CUresult copy(void* to, const void* from, size_t size, CUdeviceptr on_device, CUstream stream) {
  if (!inside(on_device, size)) return CUDA_ERROR_INVALID_VALUE;
  return enqueue(stream, &(Op){.kind = COPY, .to = to, .from = from, .size = size});
}
CUresult cuMemcpyHtoD(CUdeviceptr to, const void* from, size_t n) { NOT_WHILE_RECORDING; return copy((void*)to, from, n, to, NULL); }
CUresult cuMemcpyDtoH(void* to, CUdeviceptr from, size_t n) { NOT_WHILE_RECORDING; return copy(to, (void*)from, n, from, NULL); }
CUresult cuMemcpyDtoD(CUdeviceptr to, CUdeviceptr from, size_t n) { NOT_WHILE_RECORDING; return copy((void*)to, (void*)from, n, to, NULL); }
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t n, CUstream s) { ENTER; return copy((void*)to, from, n, to, s); }
CUresult cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t n, CUstream s) { ENTER; return copy(to, (void*)from, n, from, s); }
CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream s) { ENTER; return copy((void*)to, (void*)from, n, to, s); }
CUresult cuMemsetD8(CUdeviceptr to, unsigned char value, size_t n) {
  NOT_WHILE_RECORDING;
  if (!inside(to, n)) return CUDA_ERROR_INVALID_VALUE;
  return enqueue(NULL, &(Op){.kind = FILL, .to = (void*)to, .value = value, .size = n});
}
CUresult cuLaunchHostFunc(CUstream stream, CUhostFn call, void* argument) {
  ENTER;
  return enqueue(stream, &(Op){.kind = HOST, .call = call, .to = argument});
}

CUresult cuEventCreate(CUevent* event, unsigned flags) { ENTER; (void)flags; *event = calloc(1, sizeof **event); return CUDA_SUCCESS; }
CUresult cuEventDestroy(CUevent event) { ENTER; if (event->pending) drain(event->stream); free(event); return CUDA_SUCCESS; }
CUresult cuEventRecord(CUevent event, CUstream stream) {
  ENTER;
  CUresult error = enqueue(stream, &(Op){.kind = RECORD, .event = event});
  if (error || (stream && stream->graph)) return error;
  event->recorded = true;
  event->pending = stream != NULL;
  event->stream = stream;
  return CUDA_SUCCESS;
}
CUresult cuEventSynchronize(CUevent event) { NOT_WHILE_RECORDING; return event->pending ? drain(event->stream) : CUDA_SUCCESS; }
CUresult cuEventQuery(CUevent event) {
  NOT_WHILE_RECORDING;
  if (!event->pending) return CUDA_SUCCESS;
  drain(event->stream);
  return CUDA_ERROR_NOT_READY;
}
CUresult cuEventElapsedTime(float* ms, CUevent from, CUevent to) {
  ENTER;
  if (!from->recorded || !to->recorded) return CUDA_ERROR_INVALID_HANDLE;
  if (from->pending || to->pending) return CUDA_ERROR_NOT_READY;
  *ms = (float)(to->time_ms - from->time_ms);
  return CUDA_SUCCESS;
}

// ---- Graphs ------------------------------------------------------------------------------------------------------------

static struct CUgraph_st* new_graph(const Ops* ops) {
  struct CUgraph_st* graph = calloc(1, sizeof *graph);
  for (const Op* op = ops ? ops->first : NULL; op; op = op->next) push(&graph->ops, op);
  return graph;
}
static void free_graph(struct CUgraph_st* graph) {
  for (Op *op = graph->ops.first, *next; op; op = next) next = op->next, free(op);
  free(graph);
}
CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
  ENTER;
  if (!stream) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (stream->graph || recording || mode > CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_ILLEGAL_STATE;
  recording = stream->graph = new_graph(NULL);
  return CUDA_SUCCESS;
}
CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
  LOCK;
  *graph = NULL;
  if (!stream->graph) return CUDA_ERROR_ILLEGAL_STATE;
  if (stream->graph != recording) return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
  *graph = recording;
  recording = stream->graph = NULL;
  CUresult fault = counted(__func__);
  if (fault) return fault;
  if (!(*graph)->spoiled) return CUDA_SUCCESS;
  free_graph(*graph);
  *graph = NULL;
  return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
}
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
  ENTER;
  *status = !stream || !stream->graph ? CU_STREAM_CAPTURE_STATUS_NONE
            : stream->graph->spoiled  ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                      : CU_STREAM_CAPTURE_STATUS_ACTIVE;
  return CUDA_SUCCESS;
}
static long graphs;  // alive
CUresult cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long flags) {
  NOT_WHILE_RECORDING;
  if (!graph || flags) return CUDA_ERROR_INVALID_VALUE;
  *executable = (CUgraphExec)new_graph(&graph->ops);
  ++graphs;
  return CUDA_SUCCESS;
}
CUresult cuGraphUpload(CUgraphExec executable, CUstream stream) { ENTER; (void)stream; return executable ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; }
CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
  ENTER;
  if (!executable) return CUDA_ERROR_INVALID_VALUE;
  CUresult error = CUDA_SUCCESS;
  for (Op* op = ((CUgraph)executable)->ops.first; op && !error; op = op->next) error = enqueue(stream, op);
  return error;
}
CUresult cuGraphDestroy(CUgraph graph) { ENTER; free_graph(graph); return CUDA_SUCCESS; }
CUresult cuGraphExecDestroy(CUgraphExec executable) { ENTER; free_graph((CUgraph)executable); --graphs; return CUDA_SUCCESS; }

// ---- Modules: a real cubin says what is in it, the host build of the same source does it -------------------------------------

static char kernels_path[4096];
struct CUmod_st { void* host; unsigned char* image; size_t size; };

CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned n, CUjit_option* options, void** values) {
  NOT_WHILE_RECORDING;
  (void)n, (void)options, (void)values;
  const Elf64_Ehdr* head = image;
  if (memcmp(head->e_ident, ELFMAG, SELFMAG) || head->e_machine != 190 /* EM_CUDA */) return CUDA_ERROR_INVALID_IMAGE;
  size_t sections = head->e_shoff + (size_t)head->e_shnum * head->e_shentsize;
  size_t segments = head->e_phoff + (size_t)head->e_phnum * head->e_phentsize;
  size_t size = sections > segments ? sections : segments;
  void* host = dlopen(kernels_path, RTLD_NOW | RTLD_LOCAL);
  if (!host) return fprintf(stderr, "stand-in: %s\n", dlerror()), CUDA_ERROR_SHARED_OBJECT_INIT_FAILED;
  *module = malloc(sizeof **module);
  **module = (struct CUmod_st){host, memcpy(malloc(size), image, size), size};
  return CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule* module, const void* image) { return cuModuleLoadDataEx(module, image, 0, NULL, NULL); }
CUresult cuModuleUnload(CUmodule module) { ENTER; dlclose(module->host); free(module->image); free(module); return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  ENTER;
  char exported[256];
  snprintf(exported, sizeof exported, "%s__host", name);
  *function = memmem(module->image, module->size, name, strlen(name) + 1) ? dlsym(module->host, exported) : NULL;
  return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) { ENTER; (void)attribute, (void)function; *value = 0; return CUDA_SUCCESS; }

CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, CUstream stream, void** parameters, void** extra) {
  ENTER;
  if (!gx || !gy || !gz || !bx || !by || !bz || bx * by * bz > 1024 || gy > 65535 || gz > 65535 || shared) return CUDA_ERROR_INVALID_VALUE;
  const Kernel* kernel = (const Kernel*)function;
  int last = kernel->parameters - 1;
  size_t wanted = kernel->offsets[last] + kernel->sizes[last], given = 0;
  if (wanted > MOST_ARGUMENTS) return CUDA_ERROR_INVALID_VALUE;
  Op op = {.kind = LAUNCH, .kernel = kernel, .shape = {gx, gy, gz, bx, by, bz}};
  if (parameters)
    for (int i = 0; i <= last; ++i) memcpy(op.arguments + kernel->offsets[i], parameters[i], kernel->sizes[i]);
  else if (extra) {
    const void* buffer = NULL;
    for (; *extra != CU_LAUNCH_PARAM_END; extra += 2)
      if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER) buffer = extra[1];
      else given = *(size_t*)extra[1];
    if (!buffer || given != wanted) return CUDA_ERROR_INVALID_VALUE;
    memcpy(op.arguments, buffer, given);
  } else return CUDA_ERROR_INVALID_VALUE;
  return enqueue(stream, &op);
}

// ---- Device and contexts --------------------------------------------------------------------------------------------------

static int devices = 1, can_map = 1;
CUresult cuInit(unsigned flags) { COUNT; (void)flags; if (!devices) return CUDA_ERROR_NO_DEVICE; initialised = true; return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* version) { COUNT; *version = CUDA_VERSION; return CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int* count) { COUNT; *count = devices; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* device, int ordinal) { COUNT; *device = ordinal; return ordinal < devices ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE; }
CUresult cuDeviceGetName(char* name, int size, CUdevice device) { COUNT; (void)device; snprintf(name, size, "CPU stand-in"); return CUDA_SUCCESS; }
CUresult cuDeviceTotalMem(size_t* size, CUdevice device) { COUNT; (void)device; *size = TOTAL; return CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  COUNT;
  (void)device;
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 8; break;  // an Orin
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 7; break;
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY: *value = can_map; break;
    case CU_DEVICE_ATTRIBUTE_INTEGRATED: *value = 1; break;
    default: *value = 0;
  }
  return CUDA_SUCCESS;
}
CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice device) { COUNT; (void)device; *major = 8; *minor = 7; return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) { COUNT; (void)device; ++primary.retained; *context = &primary; return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRelease(CUdevice device) { COUNT; (void)device; return --primary.retained < 0 ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS; }
CUresult cuCtxPushCurrent(CUcontext context) { COUNT; if (depth == 16) return CUDA_ERROR_INVALID_VALUE; stack[depth++] = context; return CUDA_SUCCESS; }
CUresult cuCtxPopCurrent(CUcontext* context) { COUNT; if (!depth) return CUDA_ERROR_INVALID_CONTEXT; CUcontext top = stack[--depth]; if (context) *context = top; return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext* context) { COUNT; *context = depth ? stack[depth - 1] : NULL; return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice* device) { ENTER; *device = 0; return CUDA_SUCCESS; }

static const struct { CUresult code; const char *name, *words; } errors[] = {
#define E(CODE, WORDS) {CODE, #CODE, WORDS}
    E(CUDA_SUCCESS, "no error"), E(CUDA_ERROR_INVALID_VALUE, "invalid argument"), E(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    E(CUDA_ERROR_NOT_INITIALIZED, "initialization error"), E(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    E(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"), E(CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"),
    E(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"), E(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    E(CUDA_ERROR_NOT_FOUND, "named symbol not found"), E(CUDA_ERROR_NOT_READY, "device not ready"),
    E(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"), E(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    E(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"), E(CUDA_ERROR_ILLEGAL_STATE, "the operation cannot be performed in the present state"),
    E(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"),
    E(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"),
    E(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "attempt to terminate a thread-local capture sequence from another thread"),
};
static CUresult look_up(CUresult code, const char** text, bool name) {
  *text = "unknown error";
  for (size_t i = 0; i < sizeof errors / sizeof *errors; ++i)
    if (errors[i].code == code) return *text = name ? errors[i].name : errors[i].words, CUDA_SUCCESS;
  return CUDA_ERROR_INVALID_VALUE;
}
CUresult cuGetErrorString(CUresult code, const char** text) { return look_up(code, text, false); }
CUresult cuGetErrorName(CUresult code, const char** text) { return look_up(code, text, true); }

// cuda-bindings asks for every function here, by its name without a version.
CUresult cuGetProcAddress(const char* symbol, void** function, int version, cuuint64_t flags, CUdriverProcAddressQueryResult* status) {
  (void)version, (void)flags;
  static const char* suffixes[] = {"_v4", "_v3", "_v2", "WithFlags", ""};
  Dl_info self;
  dladdr((void*)cuInit, &self);
  void* library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  *function = NULL;
  for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes && !*function; ++i) {
    char name[256];
    snprintf(name, sizeof name, "%s%s", symbol, suffixes[i]);
    *function = dlsym(library, name);
  }
  dlclose(library);
  if (status) *status = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

// NVRTC 13 asks for NVIDIA's unpublished functions, and takes it that there is an answer.
CUresult cuGetExportTable(const void** table, const CUuuid* id) { (void)id; *table = NULL; return CUDA_ERROR_NOT_FOUND; }

// ---- For the tests ------------------------------------------------------------------------------------------------------

void standin_kernels(const char* path) { LOCK; snprintf(kernels_path, sizeof kernels_path, "%s", path); }
long standin_calls(const char* function) { LOCK; return probe_of(function)->calls; }
// Of the next calls of `function`, those after `after` others answer `error`, so many `times`.
void standin_fail(const char* function, int error, long after, long times) {
  LOCK;
  struct probe* p = probe_of(function);
  p->fail_with = error, p->fail_after = p->calls + after, p->fail_until = p->fail_after + times;
}
void standin_lose(int error) { LOCK; lost = error; }
void standin_device(int count, int maps) { LOCK; devices = count, can_map = maps; }
long standin_live(void) {
  LOCK;
  long alive = graphs + primary.retained;
  for (struct block* b = blocks; b; b = b->next) ++alive;
  for (CUstream s = streams; s; s = s->next) ++alive;
  return alive;
}
// As after loading, but for the functions' counts. Blocks are leaked, not freed: somebody may still hold them.
void standin_reset(void) {
  LOCK;
  lost = 0, devices = can_map = 1, blocks = NULL, streams = NULL, graphs = 0, primary.retained = 0;
  for (struct probe* p = probes; p->name[0]; ++p) p->fail_until = 0;
}
