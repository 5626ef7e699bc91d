/* A Triton backend that runs Tiercel's stages in the server's own process.
 *
 * Triton's stock Python backend runs each model instance in a process of its own, and copies every tensor
 * between that process and the server. This backend embeds CPython instead: an instance calls
 * tiercel_serving.runtime.embedded, which runs the same adapter.
 *
 *   request   each tensor is a NumPy array over Triton's memory (a BYTES tensor is decoded to a list of bytes objects)
 *   response  each array is copied once, into the buffer that Triton sends
 *
 * The build needs no headers of Triton, Python or NumPy and links none of their libraries, because all three
 * offer a stable binary interface: Triton's backend API 1.x; Python's stable ABI (PyObject_GetBuffer joined
 * it only in 3.11, but has the same symbol and layout in 3.10); and the function table that NumPy exports to
 * compiled extensions, whose slots are the same in 1.x and 2.x. Triton's symbols are resolved when the server
 * loads this file, and Python's in the library that `--backend-config=tiercel,libpython=PATH` names. So one
 * binary serves every Python from 3.10 and every Triton from 24.10 on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include "../native/python_abi.h"

/* ------------------------------------------------------------------------------------------------ Triton's side */

typedef struct TRITONSERVER_Error TRITONSERVER_Error;
typedef struct TRITONSERVER_Message TRITONSERVER_Message;
typedef struct TRITONBACKEND_Backend TRITONBACKEND_Backend;
typedef struct TRITONBACKEND_Model TRITONBACKEND_Model;
typedef struct TRITONBACKEND_ModelInstance TRITONBACKEND_ModelInstance;
typedef struct TRITONBACKEND_Request TRITONBACKEND_Request;
typedef struct TRITONBACKEND_Response TRITONBACKEND_Response;
typedef struct TRITONBACKEND_Input TRITONBACKEND_Input;
typedef struct TRITONBACKEND_Output TRITONBACKEND_Output;

enum { API_MAJOR = 1, API_MINOR = 19 }; /* Triton 24.10 */
enum { ERROR_INTERNAL = 1, ERROR_INVALID_ARG = 3, ERROR_UNSUPPORTED = 5, ERROR_CANCELLED = 7 };
enum { TYPE_BYTES = 13 };
enum { MEMORY_CPU = 0, MEMORY_GPU = 2 };
enum { LOG_ERROR = 2 };
enum { RESPONSE_FINAL = 1, RELEASE_ALL = 1, CONFIG_VERSION = 1 };

TRITONSERVER_Error* TRITONSERVER_ErrorNew(int code, const char* message);
void TRITONSERVER_ErrorDelete(TRITONSERVER_Error* error);
const char* TRITONSERVER_ErrorMessage(TRITONSERVER_Error* error);
TRITONSERVER_Error* TRITONSERVER_LogMessage(int level, const char* file, int line, const char* message);
TRITONSERVER_Error* TRITONSERVER_MessageSerializeToJson(TRITONSERVER_Message* message, const char** base, size_t* size);
TRITONSERVER_Error* TRITONSERVER_MessageDelete(TRITONSERVER_Message* message);
TRITONSERVER_Error* TRITONBACKEND_ApiVersion(uint32_t* major, uint32_t* minor);
TRITONSERVER_Error* TRITONBACKEND_BackendConfig(TRITONBACKEND_Backend* backend, TRITONSERVER_Message** config);
TRITONSERVER_Error* TRITONBACKEND_InputProperties(TRITONBACKEND_Input* input, const char** name, int* type,
                                                  const int64_t** shape, uint32_t* dims, uint64_t* size,
                                                  uint32_t* buffers);
TRITONSERVER_Error* TRITONBACKEND_InputBuffer(TRITONBACKEND_Input* input, uint32_t index, const void** buffer,
                                              uint64_t* size, int* memory, int64_t* memory_id);
TRITONSERVER_Error* TRITONBACKEND_OutputBuffer(TRITONBACKEND_Output* output, void** buffer, uint64_t size, int* memory,
                                               int64_t* memory_id);
TRITONSERVER_Error* TRITONBACKEND_RequestInputCount(TRITONBACKEND_Request* request, uint32_t* count);
TRITONSERVER_Error* TRITONBACKEND_RequestInputByIndex(TRITONBACKEND_Request* request, uint32_t index,
                                                      TRITONBACKEND_Input** input);
TRITONSERVER_Error* TRITONBACKEND_RequestOutputCount(TRITONBACKEND_Request* request, uint32_t* count);
TRITONSERVER_Error* TRITONBACKEND_RequestOutputName(TRITONBACKEND_Request* request, uint32_t index, const char** name);
TRITONSERVER_Error* TRITONBACKEND_RequestIsCancelled(TRITONBACKEND_Request* request, bool* is_cancelled);
TRITONSERVER_Error* TRITONBACKEND_RequestRelease(TRITONBACKEND_Request* request, uint32_t flags);
TRITONSERVER_Error* TRITONBACKEND_ResponseNew(TRITONBACKEND_Response** response, TRITONBACKEND_Request* request);
TRITONSERVER_Error* TRITONBACKEND_ResponseOutput(TRITONBACKEND_Response* response, TRITONBACKEND_Output** output,
                                                 const char* name, int type, const int64_t* shape, uint32_t dims);
TRITONSERVER_Error* TRITONBACKEND_ResponseSend(TRITONBACKEND_Response* response, uint32_t flags,
                                               TRITONSERVER_Error* error);
TRITONSERVER_Error* TRITONBACKEND_ModelRepository(TRITONBACKEND_Model* model, int* artifact, const char** location);
TRITONSERVER_Error* TRITONBACKEND_ModelConfig(TRITONBACKEND_Model* model, uint32_t version,
                                              TRITONSERVER_Message** config);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceModel(TRITONBACKEND_ModelInstance* instance,
                                                     TRITONBACKEND_Model** model);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceDeviceId(TRITONBACKEND_ModelInstance* instance, int32_t* device);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceSetState(TRITONBACKEND_ModelInstance* instance, void* state);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceState(TRITONBACKEND_ModelInstance* instance, void** state);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportStatistics(TRITONBACKEND_ModelInstance* instance,
                                                                TRITONBACKEND_Request* request, bool success,
                                                                uint64_t begin, uint64_t compute_begin,
                                                                uint64_t compute_end, uint64_t end);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportBatchStatistics(TRITONBACKEND_ModelInstance* instance,
                                                                     uint64_t users, uint64_t begin,
                                                                     uint64_t compute_begin, uint64_t compute_end,
                                                                     uint64_t end);

#define EXPORT __attribute__((visibility("default")))
#define TRY(call)                               \
  do {                                          \
    TRITONSERVER_Error* failed_ = (call);       \
    if (failed_ != NULL) return failed_;        \
  } while (0)

__attribute__((format(printf, 2, 3))) static TRITONSERVER_Error* error(int code, const char* format, ...)
{
  char text[2048];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return TRITONSERVER_ErrorNew(code, text);
}

/* For errors that can no longer be returned to a caller. */
static void log_and_delete(TRITONSERVER_Error* failed)
{
  if (failed == NULL) return;
  TRITONSERVER_Error* unlogged = TRITONSERVER_LogMessage(LOG_ERROR, __FILE__, __LINE__, TRITONSERVER_ErrorMessage(failed));
  if (unlogged != NULL) TRITONSERVER_ErrorDelete(unlogged);
  TRITONSERVER_ErrorDelete(failed);
}

static uint64_t now_ns(void)
{
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ------------------------------------------------------------------------------------------------ Python's side */

#define PYTHON(X)                                                                  \
  X(int, Py_IsInitialized, (void))                                                 \
  X(void, Py_InitializeEx, (int signals))                                          \
  X(int, PyGILState_Ensure, (void))                                                \
  X(PyThreadState*, PyEval_SaveThread, (void))                                     \
  X(void, PyEval_RestoreThread, (PyThreadState * state))                           \
  X(void, Py_IncRef, (PyObject * object))                                          \
  X(void, Py_DecRef, (PyObject * object))                                          \
  X(PyObject*, PyImport_ImportModule, (const char* name))                          \
  X(PyObject*, PyObject_GetAttrString, (PyObject * object, const char* name))      \
  X(PyObject*, PyObject_CallFunctionObjArgs, (PyObject * callable, ...))           \
  X(PyObject*, PyObject_Str, (PyObject * object))                                  \
  X(int, PyObject_GetBuffer, (PyObject * object, Py_buffer * view, int flags))     \
  X(void, PyBuffer_Release, (Py_buffer * view))                                    \
  X(void*, PyCapsule_GetPointer, (PyObject * capsule, const char* name))           \
  X(PyObject*, PyList_New, (ssize_t size))                                         \
  X(int, PyList_SetItem, (PyObject * list, ssize_t index, PyObject* item))         \
  X(PyObject*, PyList_GetItem, (PyObject * list, ssize_t index))                   \
  X(ssize_t, PyList_Size, (PyObject * list))                                       \
  X(PyObject*, PyTuple_New, (ssize_t size))                                        \
  X(int, PyTuple_SetItem, (PyObject * tuple, ssize_t index, PyObject* item))       \
  X(PyObject*, PyTuple_GetItem, (PyObject * tuple, ssize_t index))                 \
  X(ssize_t, PyTuple_Size, (PyObject * tuple))                                     \
  X(PyObject*, PyLong_FromLongLong, (long long value))                             \
  X(long long, PyLong_AsLongLong, (PyObject * number))                             \
  X(PyObject*, PyUnicode_FromString, (const char* text))                           \
  X(PyObject*, PyUnicode_FromStringAndSize, (const char* text, ssize_t size))      \
  X(const char*, PyUnicode_AsUTF8AndSize, (PyObject * text, ssize_t * size))       \
  X(PyObject*, PyBytes_FromStringAndSize, (const char* bytes, ssize_t size))       \
  X(char*, PyBytes_AsString, (PyObject * bytes))                                   \
  X(int, PyBytes_AsStringAndSize, (PyObject * bytes, char** begin, ssize_t* size)) \
  X(PyObject*, PyErr_Occurred, (void))                                             \
  X(void, PyErr_Clear, (void))                                                     \
  X(void, PyErr_Fetch, (PyObject * *type, PyObject * *value, PyObject * *traceback))

#define DECLARE(result, name, arguments) static result(*name) arguments;
PYTHON(DECLARE)
static PyObject* load_function; /* tiercel_serving.runtime.embedded.load */
static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;

/* Turn the current Python exception into a Triton error, and clear it. The caller holds the GIL. */
static TRITONSERVER_Error* python_error(const char* during)
{
  PyObject *type = NULL, *value = NULL, *traceback = NULL;
  PyErr_Fetch(&type, &value, &traceback);
  PyObject* text = value == NULL ? NULL : PyObject_Str(value);
  const char* words = text == NULL ? NULL : PyUnicode_AsUTF8AndSize(text, NULL);
  TRITONSERVER_Error* made = error(ERROR_INTERNAL, "%s: %s", during, words == NULL ? "Python raised an error" : words);
  PyErr_Clear();
  if (text != NULL) Py_DecRef(text);
  if (type != NULL) Py_DecRef(type);
  if (value != NULL) Py_DecRef(value);
  if (traceback != NULL) Py_DecRef(traceback);
  return made;
}

/* NumPy's array type, and some of its C functions with their slots in its function table. */
static PyObject* array_type;
static PyObject* (*find_descr)(int number);
static PyObject* (*new_array)(PyObject* type, PyObject* descr, int dims, const int64_t* shape, const int64_t* strides,
                              void* data, int flags, PyObject* object);
static int (*set_base)(PyObject* array, PyObject* owner);
enum { ARRAY_TYPE = 2, FIND_DESCR = 45, NEW_ARRAY = 94, SET_BASE = 282 };
enum { ARRAY_IN_ORDER = 1, ARRAY_ALIGNED = 0x100 };

/* NumPy's type number and the bytes of an element, indexed by Triton's data type. */
static const struct {
  int number;
  uint64_t size;
} numpy_types[] = {{0, 0}, {0, 1}, {2, 1}, {4, 2}, {6, 4}, {8, 8}, {1, 1}, {3, 2}, {5, 4}, {7, 8}, {23, 2}, {11, 4}, {12, 8}};
enum { NUMPY_TYPES = sizeof numpy_types / sizeof *numpy_types };

/* Read the functions needed from NumPy's table, which the module `embedded` holds; false leaves a Python error set. */
static bool open_numpy(PyObject* embedded)
{
  PyObject* capsule = PyObject_GetAttrString(embedded, "ARRAY_API");
  void** table = capsule == NULL ? NULL : PyCapsule_GetPointer(capsule, NULL);
  if (capsule != NULL) Py_DecRef(capsule);
  if (table == NULL) return false;
  array_type = table[ARRAY_TYPE];
  *(void**)(&find_descr) = table[FIND_DESCR];
  *(void**)(&new_array) = table[NEW_ARRAY];
  *(void**)(&set_base) = table[SET_BASE];
  return true;
}

/* Each thread keeps its Python thread state: creating one for every call would cost microseconds. */
static __thread PyThreadState* thread_state;

static void enter_python(void)
{
  if (thread_state != NULL)
    PyEval_RestoreThread(thread_state);
  else
    PyGILState_Ensure();
}

static void leave_python(void) { thread_state = PyEval_SaveThread(); }

/* Return the value of "libpython" in the backend's configuration (JSON), or NULL; the caller frees it. */
static char* configured_libpython(TRITONBACKEND_Backend* backend)
{
  static const char key[] = "\"libpython\":\"";
  TRITONSERVER_Message* config = NULL;
  const char* json = NULL;
  size_t size = 0;
  TRITONSERVER_Error* failed = TRITONBACKEND_BackendConfig(backend, &config);
  if (failed == NULL) failed = TRITONSERVER_MessageSerializeToJson(config, &json, &size);
  if (failed != NULL) {
    log_and_delete(failed);
    return NULL;
  }
  const char* found = memmem(json, size, key, sizeof key - 1);
  if (found == NULL) return NULL;
  const char* begin = found + sizeof key - 1;
  const char* end = memchr(begin, '"', size - (size_t)(begin - json));
  return end == NULL ? NULL : strndup(begin, (size_t)(end - begin));
}

static TRITONSERVER_Error* open_python(TRITONBACKEND_Backend* backend)
{
  char* path = configured_libpython(backend);
  if (path == NULL)
    return error(ERROR_INTERNAL,
                 "backend tiercel: which Python shall it load? Start it with `tiercel serve --runner tiercel`, or give "
                 "tritonserver --backend-config=tiercel,libpython=/path/to/libpython3.X.so.1.0");
  /* RTLD_GLOBAL, because Python's extension modules resolve its symbols in the global scope. */
  void* library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  if (library == NULL) {
    TRITONSERVER_Error* failed = error(ERROR_INTERNAL, "backend tiercel: libpython=%s: %s", path, dlerror());
    free(path);
    return failed;
  }
  free(path);
#define LOOK_UP(result, name, arguments)                                                                         \
  *(void**)(&name) = dlsym(library, #name);                                                                      \
  if (name == NULL) return error(ERROR_UNSUPPORTED, "backend tiercel: this Python has no " #name "; take 3.10 or later");
  PYTHON(LOOK_UP)
  return NULL;
}

EXPORT TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend* backend)
{
  uint32_t major = 0, minor = 0;
  TRY(TRITONBACKEND_ApiVersion(&major, &minor));
  if (major != API_MAJOR || minor < API_MINOR)
    return error(ERROR_UNSUPPORTED,
                 "backend tiercel: expected Triton's backend API %d.%d or a later %d.x (Triton 24.10), found %u.%u; "
                 "serve with `--runner python`",
                 API_MAJOR, API_MINOR, API_MAJOR, major, minor);
  if (load_function != NULL) return NULL; /* Triton loads it again after the last of its models was unloaded */
  TRY(open_python(backend));
  if (Py_IsInitialized()) {
    enter_python();
  } else {
    /* It imports from the environment of the first `python3` on PATH, which may be a virtual environment. */
    Py_InitializeEx(0);
  }
  PyObject* module = PyImport_ImportModule("tiercel_serving.runtime.embedded");
  if (module != NULL) {
    if (open_numpy(module)) load_function = PyObject_GetAttrString(module, "load");
    Py_DecRef(module);
  }
  TRITONSERVER_Error* failed =
      load_function == NULL
          ? python_error("backend tiercel: the `python3` that comes first on PATH has no tiercel_serving")
          : NULL;
  leave_python();
  return failed;
}

/* ------------------------------------------------------------------------------------------- a model's instances */

/* A request in an instance's queue, and its response. */
typedef struct Call {
  TRITONBACKEND_Request* request;
  TRITONBACKEND_Response* response;
  TRITONSERVER_Error* failed;
  PyObject* read; /* (kind, bodies), as Python gets it */
  ssize_t place;  /* its index in the list that Python gets, or -1 if it could not be read */
  uint64_t users, row; /* its number of users, and its first row in the batch */
  struct Call* next;
} Call;

/* The signature of a request: names, types and shapes of its tensors, and the names of the requested outputs.
 * The key holds it as bytes, to compare signatures; `object` is the same for Python, which recognises
 * requests with one signature by the object's identity. */
enum { MOST_KEY = 4096 };
typedef struct {
  size_t size; /* 0 matches no request */
  bool whole;  /* false if the signature did not fit */
  char bytes[MOST_KEY];
} Key;
typedef struct {
  PyObject* object;
  Key key;
} Kind;

typedef struct Instance {
  TRITONBACKEND_ModelInstance* triton;
  TRITONBACKEND_Model* model;
  PyObject *execute, *settle, *finalize;
  uint64_t most_users; /* in one batch */
  Kind kind;           /* of the latest request; guarded by the GIL */
  /* Guarded by `turns`: */
  Call *first, **last; /* the queue, oldest first, and where the next request is appended */
  bool running;
  bool inner;       /* its requests are other models' outputs */
  bool batched;     /* Triton batches its requests, under limits that the configuration sets */
  uint32_t hope;    /* saturating counter: +1 when lingering after this instance paid off, -1 when it did not */
  uint32_t tired;   /* how often `hope` was 0 when a thread could have lingered */
  uint32_t answered; /* requests of the latest batch */
  uint32_t awaited;  /* the value of `arrivals` that ends the lingering */
  struct Instance* next;
} Instance;

/* Scheduling. The GIL lets one thread run Python at a time. If each instance ran in its own thread and took
 * whatever had just arrived, the stages would pass on ever smaller batches. So Triton's threads only enqueue
 * their requests, and one of them, the runner, runs the instances round robin, each on everything that is
 * queued for it up to its largest batch. There may be as many runners as the model with the most instances
 * has, for libraries that release the GIL.
 *
 * A thread in which Triton delivers requests wakes a spare thread of the backend to run them, if none runs, and
 * returns at once: so Triton goes on to deliver, and what arrives meanwhile is the next batch. If Triton batches the
 * requests of a model, under limits of its configuration (how many may wait, and how long), they must wait in
 * Triton's queue. So that thread becomes a runner itself, and Triton delivers nothing in it meanwhile. After
 * PATIENCE batches it hands over to a spare thread.
 *
 * A response is usually followed by another request: of the next model in the staged layout, or of a caller who has
 * waited for it. Triton delivers that in another thread about 50 us later. A runner that began another batch
 * meanwhile would split what ran together. One that stopped would move the work to another thread, and with it
 * Python's working set to another core's caches, and let the processor fall asleep. So a runner lingers until as
 * many requests have arrived as it has answered, for LINGER_NS at most, yielding the core to other threads. Where it
 * has answered more than MANY, others keep the cores awake, and it sleeps meanwhile. It does so after instances whose
 * `hope` is above 0, where lingering has mostly paid off, and one time in PROBE after the others. */
enum { PATIENCE = 16, LINGER_NS = 500000, PROBE = 64, MOST_HOPE = 16, MANY = 8 };
static pthread_mutex_t turns = PTHREAD_MUTEX_INITIALIZER;
static Instance *instances, *turn[2]; /* all; and where the next search starts (NULL: at the first), [1] for inner ones */
static uint32_t runners, most_runners, spares;
static uint32_t handed_over;      /* runners that no spare thread has replaced yet */
static _Atomic uint32_t arrivals; /* how many requests were enqueued so far */
static pthread_cond_t spare_wanted = PTHREAD_COND_INITIALIZER;
static pthread_cond_t enough = PTHREAD_COND_INITIALIZER;
static uint32_t sleepers, slept_for; /* runners that wait for `enough`, and the value of `arrivals` that the latest awaits */

/* Return the number that follows a key in a configuration (JSON), or 0. */
static uint64_t number_at(const char* json, size_t size, const char* key)
{
  const char* found = memmem(json, size, key, strlen(key));
  uint64_t number = 0;
  if (found == NULL) return 0;
  for (found += strlen(key); found < json + size && *found >= '0' && *found <= '9'; ++found)
    number = 10 * number + (uint64_t)(*found - '0');
  return number;
}

static void* run_spare(void* unused);

/* Add an instance to those that runners serve, and start spare threads for it. */
static void join_in(Instance* instance)
{
  uint32_t alike = 1;
  instance->last = &instance->first;
  pthread_mutex_lock(&turns);
  Instance** end = &instances;
  for (; *end != NULL; end = &(*end)->next) alike += (*end)->model == instance->model;
  *end = instance;
  if (alike > most_runners) most_runners = alike;
  for (pthread_t spare; spares < most_runners && pthread_create(&spare, NULL, run_spare, NULL) == 0; ++spares)
    pthread_detach(spare);
  pthread_mutex_unlock(&turns);
}

static void leave_out(const Instance* instance)
{
  pthread_mutex_lock(&turns);
  Instance** at = &instances;
  while (*at != NULL && *at != instance) at = &(*at)->next;
  if (*at != NULL) *at = instance->next;
  for (int inner = 0; inner < 2; ++inner)
    if (turn[inner] == instance) turn[inner] = instance->next;
  pthread_mutex_unlock(&turns);
}

static TRITONSERVER_Error* load(Instance* instance, const char* config, size_t size, const char* location, int32_t device)
{
  PyObject* text = PyUnicode_FromStringAndSize(config, (ssize_t)size);
  PyObject* place = PyUnicode_FromString(location);
  PyObject* number = PyLong_FromLongLong(device);
  PyObject* loaded = NULL;
  if (text != NULL && place != NULL && number != NULL)
    loaded = PyObject_CallFunctionObjArgs(load_function, text, place, number, NULL);
  if (text != NULL) Py_DecRef(text);
  if (place != NULL) Py_DecRef(place);
  if (number != NULL) Py_DecRef(number);
  if (loaded == NULL) return python_error("model");
  instance->execute = PyObject_GetAttrString(loaded, "execute");
  instance->settle = PyObject_GetAttrString(loaded, "settle");
  instance->finalize = PyObject_GetAttrString(loaded, "finalize");
  instance->most_users = number_at(config, size, "\"max_batch_size\":");
  instance->batched = memmem(config, size, "\"dynamic_batching\":", 19) != NULL;
  PyObject* inner = PyObject_GetAttrString(loaded, "inner");
  instance->inner = inner != NULL && PyLong_AsLongLong(inner) == 1;
  if (inner != NULL) Py_DecRef(inner);
  Py_DecRef(loaded);
  bool whole = instance->execute != NULL && instance->settle != NULL && instance->finalize != NULL && inner != NULL;
  return whole ? NULL : python_error("model");
}

EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance* triton_instance)
{
  TRITONBACKEND_Model* model = NULL;
  TRITONSERVER_Message* message = NULL;
  const char *location = NULL, *config = NULL;
  size_t size = 0;
  int artifact = 0;
  int32_t device = 0;
  TRY(TRITONBACKEND_ModelInstanceDeviceId(triton_instance, &device));
  TRY(TRITONBACKEND_ModelInstanceModel(triton_instance, &model));
  TRY(TRITONBACKEND_ModelRepository(model, &artifact, &location));
  TRY(TRITONBACKEND_ModelConfig(model, CONFIG_VERSION, &message));
  TRITONSERVER_Error* failed = TRITONSERVER_MessageSerializeToJson(message, &config, &size);
  Instance* instance = calloc(1, sizeof *instance);
  if (failed == NULL && instance == NULL) failed = error(ERROR_INTERNAL, "backend tiercel: out of memory");
  if (failed == NULL) {
    /* Triton loads models concurrently, but some of the libraries they import are not safe to import concurrently. */
    pthread_mutex_lock(&loading);
    enter_python();
    failed = load(instance, config, size, location, device);
    leave_python();
    pthread_mutex_unlock(&loading);
  }
  log_and_delete(TRITONSERVER_MessageDelete(message));
  if (failed != NULL) {
    free(instance);
    return failed;
  }
  instance->triton = triton_instance;
  instance->model = model;
  join_in(instance);
  return TRITONBACKEND_ModelInstanceSetState(triton_instance, instance);
}

EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance* triton_instance)
{
  Instance* instance = NULL;
  TRY(TRITONBACKEND_ModelInstanceState(triton_instance, (void**)&instance));
  if (instance == NULL) return NULL;
  leave_out(instance);
  enter_python();
  PyObject* done = PyObject_CallFunctionObjArgs(instance->finalize, NULL);
  TRITONSERVER_Error* failed = done == NULL ? python_error("model: finalize") : NULL;
  if (done != NULL) Py_DecRef(done);
  Py_DecRef(instance->execute);
  Py_DecRef(instance->settle);
  Py_DecRef(instance->finalize);
  if (instance->kind.object != NULL) Py_DecRef(instance->kind.object);
  leave_python();
  free(instance);
  return failed;
}

/* ---------------------------------------------------------------------------------------------- requests → Python */

/* Decode a BYTES tensor to a list: each element is its length (4 bytes, little-endian), then its bytes. */
static PyObject* decode_bytes(const unsigned char* data, uint64_t size, uint64_t elements)
{
  /* Each element takes 4 bytes at least, so the data's size bounds the list. */
  if (elements > size / 4) return NULL;
  PyObject* list = PyList_New((ssize_t)elements);
  uint64_t at = 0;
  for (uint64_t index = 0; list != NULL && index < elements; ++index) {
    uint64_t length = 0;
    if (size - at >= 4) length = data[at] | data[at + 1] << 8 | data[at + 2] << 16 | (uint64_t)data[at + 3] << 24;
    if (size - at < 4 || size - at - 4 < length) {
      Py_DecRef(list);
      return NULL;
    }
    PyObject* element = PyBytes_FromStringAndSize((const char*)data + at + 4, (ssize_t)length);
    if (element == NULL) {
      Py_DecRef(list);
      return NULL;
    }
    PyList_SetItem(list, (ssize_t)index, element);
    at += 4 + length;
  }
  if (list != NULL && at != size) {
    Py_DecRef(list);
    return NULL;
  }
  return list;
}

/* Return a tensor's data as one buffer: Triton's own memory, or, if that is in parts, a bytes object (`owner`). */
static TRITONSERVER_Error* join(TRITONBACKEND_Input* input, const char* name, uint64_t size, uint32_t buffers,
                                const void** data, PyObject** owner)
{
  *data = "";
  *owner = NULL;
  if (buffers > 1 && (*owner = PyBytes_FromStringAndSize(NULL, (ssize_t)size)) == NULL) return python_error(name);
  uint64_t at = 0;
  for (uint32_t index = 0; index < buffers; ++index) {
    const void* part = NULL;
    uint64_t length = 0;
    int memory = MEMORY_CPU;
    int64_t memory_id = 0;
    TRY(TRITONBACKEND_InputBuffer(input, index, &part, &length, &memory, &memory_id));
    if (memory == MEMORY_GPU)
      return error(ERROR_UNSUPPORTED, "input %s is on a GPU, which this backend cannot read; send it from the host", name);
    if (length > size - at) return error(ERROR_INTERNAL, "input %s: more bytes than its shape has", name);
    if (*owner == NULL)
      *data = part;
    else if (length > 0)
      memcpy(PyBytes_AsString(*owner) + at, part, length);
    at += length;
  }
  if (at != size) return error(ERROR_INTERNAL, "input %s: fewer bytes than its shape has", name);
  if (*owner != NULL) *data = PyBytes_AsString(*owner);
  return NULL;
}

/* Append to a key; if it does not fit, the key is no longer whole and matches nothing. */
static void append(Key* key, const void* bytes, size_t size)
{
  key->whole = key->whole && size <= MOST_KEY - key->size;
  if (!key->whole) return;
  memcpy(key->bytes + key->size, bytes, size);
  key->size += size;
}

/* Return an array over memory that outlives it or belongs to `owner`, whose reference is stolen; NULL leaves a Python
 * error set. */
static PyObject* make_array(int type, const int64_t* shape, uint32_t dims, const void* data, PyObject* owner)
{
  int aligned = (uintptr_t)data % numpy_types[type].size == 0 ? ARRAY_ALIGNED : 0;
  PyObject* array = new_array(array_type, find_descr(numpy_types[type].number), (int)dims, shape, NULL, (void*)data,
                              ARRAY_IN_ORDER | aligned, NULL);
  if (owner == NULL) return array;
  if (array != NULL && set_base(array, owner) == 0) return array;
  Py_DecRef(array == NULL ? owner : array);
  return NULL;
}

/* Read the data of one tensor, and append its description to the key. */
static TRITONSERVER_Error* read_body(TRITONBACKEND_Input* input, Key* key, PyObject** body)
{
  const char* name = NULL;
  const int64_t* shape = NULL;
  int type = 0;
  uint32_t dims = 0, buffers = 0;
  uint64_t size = 0, elements = 1;
  TRY(TRITONBACKEND_InputProperties(input, &name, &type, &shape, &dims, &size, &buffers));
  append(key, name, strlen(name) + 1);
  append(key, &type, sizeof type);
  append(key, &dims, sizeof dims);
  append(key, shape, dims * sizeof *shape);
  if (type < 1 || type > TYPE_BYTES) return error(ERROR_UNSUPPORTED, "input %s: this backend knows no type %d", name, type);
  /* No overflow: Triton has bounded the product when it accepted the request. */
  for (uint32_t index = 0; index < dims; ++index) elements *= (uint64_t)shape[index];
  if (type < NUMPY_TYPES && size != elements * numpy_types[type].size)
    return error(ERROR_INVALID_ARG, "input %s: its %llu bytes are not those of its shape", name, (unsigned long long)size);
  const void* data = NULL;
  PyObject* owner = NULL;
  TRITONSERVER_Error* failed = join(input, name, size, buffers, &data, &owner);
  if (failed == NULL && type == TYPE_BYTES) {
    *body = decode_bytes(data, size, elements);
    if (*body == NULL && !PyErr_Occurred())
      failed = error(ERROR_INVALID_ARG, "input %s: its %llu bytes are not %llu strings, each behind its length", name,
                     (unsigned long long)size, (unsigned long long)elements);
  } else if (failed == NULL) {
    *body = make_array(type, shape, dims, data, owner);
    owner = NULL;
  }
  if (owner != NULL) Py_DecRef(owner);
  if (failed == NULL && *body == NULL) failed = python_error(name);
  return failed;
}

static void set(PyObject* tuple, ssize_t index, PyObject* item, bool* whole)
{
  *whole = *whole && item != NULL;
  if (item != NULL) PyTuple_SetItem(tuple, index, item);
}

/* Make (name, Triton's type, shape) of one tensor. */
static TRITONSERVER_Error* describe_tensor(TRITONBACKEND_Input* input, PyObject** described)
{
  const char* name = NULL;
  const int64_t* shape = NULL;
  int type = 0;
  uint32_t dims = 0, buffers = 0;
  uint64_t size = 0;
  TRY(TRITONBACKEND_InputProperties(input, &name, &type, &shape, &dims, &size, &buffers));
  PyObject* sizes = PyTuple_New(dims);
  *described = PyTuple_New(3);
  bool whole = sizes != NULL && *described != NULL;
  for (uint32_t index = 0; whole && index < dims; ++index) set(sizes, index, PyLong_FromLongLong(shape[index]), &whole);
  if (*described == NULL) {
    if (sizes != NULL) Py_DecRef(sizes);
    return python_error(name);
  }
  set(*described, 0, PyUnicode_FromString(name), &whole);
  set(*described, 1, PyLong_FromLongLong(type), &whole);
  set(*described, 2, sizes, &whole);
  return whole ? NULL : python_error(name);
}

/* Make (((name, type, shape) …), [name of a requested output …]) of a request. */
static TRITONSERVER_Error* describe(TRITONBACKEND_Request* request, uint32_t inputs, uint32_t outputs, PyObject** described)
{
  PyObject *tensors = PyTuple_New(inputs), *names = PyList_New(outputs);
  *described = PyTuple_New(2);
  if (tensors == NULL || names == NULL || *described == NULL) return python_error("request");
  PyTuple_SetItem(*described, 0, tensors);
  PyTuple_SetItem(*described, 1, names);
  for (uint32_t index = 0; index < inputs; ++index) {
    TRITONBACKEND_Input* input = NULL;
    PyObject* tensor = NULL;
    TRY(TRITONBACKEND_RequestInputByIndex(request, index, &input));
    TRITONSERVER_Error* failed = describe_tensor(input, &tensor);
    if (tensor != NULL) PyTuple_SetItem(tensors, index, tensor);
    if (failed != NULL) return failed;
  }
  for (uint32_t index = 0; index < outputs; ++index) {
    const char* name = NULL;
    TRY(TRITONBACKEND_RequestOutputName(request, index, &name));
    PyObject* text = PyUnicode_FromString(name);
    if (text == NULL) return python_error(name);
    PyList_SetItem(names, index, text);
  }
  return NULL;
}

/* Make `kind` that of a request with this key; it rarely differs from the latest one. */
static TRITONSERVER_Error* find_kind(Kind* kind, const Key* key, TRITONBACKEND_Request* request, uint32_t inputs,
                                     uint32_t outputs)
{
  if (key->whole && key->size == kind->key.size && memcmp(key->bytes, kind->key.bytes, key->size) == 0) return NULL;
  PyObject* described = NULL;
  TRITONSERVER_Error* failed = describe(request, inputs, outputs, &described);
  if (failed != NULL) {
    if (described != NULL) Py_DecRef(described);
    return failed;
  }
  if (kind->object != NULL) Py_DecRef(kind->object);
  kind->object = described;
  kind->key.size = key->whole ? key->size : 0;
  memcpy(kind->key.bytes, key->bytes, kind->key.size);
  return NULL;
}

/* Read one request as (kind, [data of a tensor …]); a cancelled one is an error. */
static TRITONSERVER_Error* read_request(Kind* kind, TRITONBACKEND_Request* request, PyObject** read)
{
  bool cancelled = false;
  TRY(TRITONBACKEND_RequestIsCancelled(request, &cancelled));
  if (cancelled) return error(ERROR_CANCELLED, "cancelled before it was computed");
  uint32_t inputs = 0, outputs = 0;
  TRY(TRITONBACKEND_RequestInputCount(request, &inputs));
  TRY(TRITONBACKEND_RequestOutputCount(request, &outputs));
  PyObject* bodies = PyList_New(inputs);
  *read = PyTuple_New(2);
  if (bodies == NULL || *read == NULL) return python_error("request");
  PyTuple_SetItem(*read, 1, bodies);
  Key key;
  key.size = 0;
  key.whole = true;
  append(&key, &inputs, sizeof inputs);
  for (uint32_t index = 0; index < inputs; ++index) {
    TRITONBACKEND_Input* input = NULL;
    PyObject* body = NULL;
    TRY(TRITONBACKEND_RequestInputByIndex(request, index, &input));
    TRY(read_body(input, &key, &body));
    PyList_SetItem(bodies, index, body);
  }
  for (uint32_t index = 0; index < outputs; ++index) {
    const char* name = NULL;
    TRY(TRITONBACKEND_RequestOutputName(request, index, &name));
    append(&key, name, strlen(name) + 1);
  }
  TRY(find_kind(kind, &key, request, inputs, outputs));
  Py_IncRef(kind->object);
  PyTuple_SetItem(*read, 0, kind->object);
  return NULL;
}

/* ----------------------------------------------------------------------------------------------- Python → answers */

static TRITONSERVER_Error* output_buffer(TRITONBACKEND_Output* output, const char* name, uint64_t size, void** buffer)
{
  int memory = MEMORY_CPU;
  int64_t memory_id = 0;
  TRY(TRITONBACKEND_OutputBuffer(output, buffer, size, &memory, &memory_id));
  if (memory == MEMORY_GPU) return error(ERROR_UNSUPPORTED, "output %s is wanted on a GPU, where this backend cannot write", name);
  return NULL;
}

/* The rows of a tensor that belong to one request; `all` is the tensor's number of rows. */
typedef struct {
  uint64_t begin, count, all;
} Rows;

/* Write rows of a list of bytes objects as a BYTES tensor. */
static TRITONSERVER_Error* write_bytes(TRITONBACKEND_Output* output, const char* name, PyObject* list, const Rows* rows)
{
  ssize_t each = rows->all == 0 ? 0 : PyList_Size(list) / (ssize_t)rows->all, length = 0;
  ssize_t begin = (ssize_t)rows->begin * each, end = begin + (ssize_t)rows->count * each;
  uint64_t size = 0;
  char* bytes = NULL;
  for (ssize_t index = begin; index < end; ++index) {
    if (PyBytes_AsStringAndSize(PyList_GetItem(list, index), &bytes, &length) != 0) return python_error(name);
    size += 4 + (uint64_t)length;
  }
  void* buffer = NULL;
  TRY(output_buffer(output, name, size, &buffer));
  unsigned char* at = buffer;
  for (ssize_t index = begin; index < end; ++index) {
    if (PyBytes_AsStringAndSize(PyList_GetItem(list, index), &bytes, &length) != 0) return python_error(name);
    for (int byte = 0; byte < 4; ++byte) *at++ = (unsigned char)((uint64_t)length >> 8 * byte);
    memcpy(at, bytes, (size_t)length);
    at += length;
  }
  return NULL;
}

static TRITONSERVER_Error* write_array(TRITONBACKEND_Output* output, const char* name, PyObject* array, const Rows* rows)
{
  Py_buffer view;
  if (PyObject_GetBuffer(array, &view, BUFFER_SIMPLE) != 0) return python_error(name);
  uint64_t each = rows->all == 0 ? 0 : (uint64_t)view.len / rows->all;
  void* buffer = NULL;
  TRITONSERVER_Error* failed = output_buffer(output, name, rows->count * each, &buffer);
  if (failed == NULL && rows->count * each > 0)
    memcpy(buffer, (const char*)view.buf + rows->begin * each, rows->count * each);
  PyBuffer_Release(&view);
  return failed;
}

/* Write an output (name, type, shape, data): the call's rows if the tensor is shared by the batch, else all. */
static TRITONSERVER_Error* write_tensor(const Call* call, PyObject* tensor, bool shared)
{
  enum { MOST_DIMS = 16 };
  int64_t shape[MOST_DIMS];
  const char* name = PyUnicode_AsUTF8AndSize(PyTuple_GetItem(tensor, 0), NULL);
  if (name == NULL) return python_error("output");
  int type = (int)PyLong_AsLongLong(PyTuple_GetItem(tensor, 1));
  PyObject* sizes = PyTuple_GetItem(tensor, 2);
  ssize_t dims = PyTuple_Size(sizes);
  if (dims < 1 || dims > MOST_DIMS) return error(ERROR_INTERNAL, "output %s: %zd dimensions; it may have 1 to %d", name, dims, MOST_DIMS);
  for (ssize_t index = 0; index < dims; ++index) shape[index] = PyLong_AsLongLong(PyTuple_GetItem(sizes, index));
  Rows rows = {0, (uint64_t)shape[0], (uint64_t)shape[0]};
  if (shared) {
    rows.begin = call->row;
    rows.count = call->users;
    if (rows.begin + rows.count > rows.all)
      return error(ERROR_INTERNAL, "output %s: the model gave %lld rows, too few for its batch", name, (long long)shape[0]);
    shape[0] = (int64_t)rows.count;
  }
  TRITONBACKEND_Output* output = NULL;
  TRY(TRITONBACKEND_ResponseOutput(call->response, &output, name, type, shape, (uint32_t)dims));
  PyObject* body = PyTuple_GetItem(tensor, 3);
  return type == TYPE_BYTES ? write_bytes(output, name, body, &rows) : write_array(output, name, body, &rows);
}

/* Write an answer, (code, message, [tensor …]); code -1 is success. A shared answer is that of the whole batch. */
static TRITONSERVER_Error* write_answer(const Call* call, PyObject* answer, bool shared)
{
  int code = (int)PyLong_AsLongLong(PyTuple_GetItem(answer, 0));
  if (code >= 0) {
    const char* message = PyUnicode_AsUTF8AndSize(PyTuple_GetItem(answer, 1), NULL);
    return message == NULL ? python_error("answer") : TRITONSERVER_ErrorNew(code, message);
  }
  PyObject* tensors = PyTuple_GetItem(answer, 2);
  ssize_t count = PyList_Size(tensors);
  for (ssize_t index = 0; index < count; ++index) TRY(write_tensor(call, PyList_GetItem(tensors, index), shared));
  return NULL;
}

/* ------------------------------------------------------------------------------------------------------ execution */

/* Return how many users a request has: the first dimension of its first tensor, or 1 if that is unknown. */
static uint64_t count_users(TRITONBACKEND_Request* request)
{
  TRITONBACKEND_Input* input = NULL;
  const char* name = NULL;
  const int64_t* shape = NULL;
  int type = 0;
  uint32_t dims = 0, buffers = 0;
  uint64_t size = 0;
  TRITONSERVER_Error* failed = TRITONBACKEND_RequestInputByIndex(request, 0, &input);
  if (failed == NULL) failed = TRITONBACKEND_InputProperties(input, &name, &type, &shape, &dims, &size, &buffers);
  log_and_delete(failed);
  return failed == NULL && dims > 0 ? (uint64_t)shape[0] : 1;
}

/* Where threads wake. If another thread occupies the processor on which a thread ran last, the kernel wakes it on an
 * idle one, and everything that Python needs must be fetched into that one's caches. So a thread that has run Python
 * asks to be woken where it ran; the other thread, one of gRPC's or Triton's, is done within microseconds. The
 * request holds only while the thread waits: threads that a stage starts inherit it, and libraries with threads need
 * all processors. Where others compute on that processor, waiting for it would cost milliseconds: after a wait of
 * more than CROWDED_NS for a processor, the thread takes any for a while, LEAST_APART_NS at first, and twice as long each
 * time that it happens again. Every FREE_WAIT-th wait is without the request, so that the thread can leave a processor
 * that stays busy. */
enum { FREE_WAIT = 16, LOOK_WAIT = 4, CROWDED_NS = 500000, LEAST_APART_NS = 8000000, MOST_APART_NS = 1024000000 };
static __thread cpu_set_t allowed, kept; /* the thread's processors, and the one on which it waits */
static __thread bool keeps;
static __thread uint32_t waits;
static __thread uint64_t queued_ns, apart_ns = LEAST_APART_NS, apart_until_ns;

/* Return how long this thread could run and had no processor, in all; UINT64_MAX if the kernel does not say. */
static uint64_t time_queued_ns(void)
{
  char text[64] = "", *second = NULL, *end = NULL;
  int file = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
  ssize_t size = file < 0 ? -1 : read(file, text, sizeof text - 1);
  if (file >= 0) close(file);
  if (size <= 0) return UINT64_MAX;
  strtoull(text, &second, 10); /* how long it ran */
  uint64_t queued = strtoull(second, &end, 10);
  return end == second ? UINT64_MAX : queued;
}

/* Return whether processors are free enough to wait for a certain one; looked at every LOOK_WAIT-th time. */
static bool uncrowded(void)
{
  if (waits % LOOK_WAIT != 0 && queued_ns != UINT64_MAX) return now_ns() >= apart_until_ns;
  uint64_t queued = time_queued_ns(), now = now_ns();
  if (queued_ns != 0 && queued - queued_ns > CROWDED_NS) {
    apart_until_ns = now + apart_ns;
    if (apart_ns < MOST_APART_NS) apart_ns *= 2;
  } else if (now >= apart_until_ns && apart_ns > LEAST_APART_NS) {
    apart_ns /= 2;
  }
  queued_ns = queued;
  return queued != UINT64_MAX && now >= apart_until_ns;
}

/* Before a wait: ask to be woken on this processor. */
static void keep_processor(void)
{
  int here = sched_getcpu();
  if (++waits % FREE_WAIT == 0 || !uncrowded() || here < 0 || here >= CPU_SETSIZE) return;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) == 1) return;
  CPU_ZERO(&kept);
  CPU_SET(here, &kept);
  keeps = sched_setaffinity(0, sizeof kept, &kept) == 0;
}

/* After a wait: may run everywhere again, unless someone else has chosen processors for the thread meanwhile. */
static void leave_processor(void)
{
  cpu_set_t now;
  if (!keeps) return;
  keeps = false;
  if (sched_getaffinity(0, sizeof now, &now) == 0 && CPU_EQUAL(&now, &kept)) sched_setaffinity(0, sizeof allowed, &allowed);
}

/* Let a spare thread run in the caller's place; return whether there is one. The caller holds `turns`. */
static bool hand_over(void)
{
  if (spares == 0) return false;
  ++handed_over;
  pthread_cond_signal(&spare_wanted);
  return true;
}

/* Enqueue requests for an instance; `run` says whether the caller becomes a runner. */
static TRITONSERVER_Error* put_down(Instance* instance, TRITONBACKEND_Request** requests, uint32_t count, bool* run)
{
  Call *first = NULL, **last = &first;
  for (uint32_t index = 0; index < count; ++index) {
    Call* call = calloc(1, sizeof *call);
    if (call == NULL) {
      for (Call* next; first != NULL; first = next) {
        next = first->next;
        free(first);
      }
      return error(ERROR_INTERNAL, "backend tiercel: out of memory");
    }
    call->request = requests[index];
    call->users = count_users(requests[index]);
    *last = call;
    last = &call->next;
  }
  pthread_mutex_lock(&turns);
  if (first != NULL) {
    *instance->last = first;
    instance->last = last;
    arrivals += count;
    if (sleepers > 0 && (int32_t)(arrivals - slept_for) >= 0) pthread_cond_broadcast(&enough);
  }
  bool free_turn = runners < most_runners;
  runners += free_turn;
  *run = free_turn && (instance->batched || !hand_over());
  pthread_mutex_unlock(&turns);
  return NULL;
}

static bool ready(const Instance* instance) { return !instance->running && instance->first != NULL; }

static Instance* next_of(bool inner)
{
  Instance* found = turn[inner];
  while (found != NULL && (found->inner != inner || !ready(found))) found = found->next;
  if (found == NULL)
    for (found = instances; found != NULL && (found->inner != inner || !ready(found));) found = found->next;
  return found;
}

/* Return the instance to run next: inner ones first, so that requests under way finish while new ones accumulate. */
static Instance* next_ready(void)
{
  Instance* found = next_of(true);
  return found == NULL ? next_of(false) : found;
}

/* Return the instance, or NULL if it was finalised meanwhile. */
static Instance* still_there(const Instance* instance)
{
  Instance* found = instances;
  while (found != NULL && found != instance) found = found->next;
  return found;
}

/* Wait briefly for as many requests as were answered; `turns` is released meanwhile. */
static void linger(const Instance* before)
{
  Instance* ran = still_there(before);
  if (ran == NULL || (ran->hope == 0 && ++ran->tired % PROBE != 0)) return;
  uint32_t awaited = ran->awaited;
  uint64_t end = now_ns() + LINGER_NS;
  if (ran->answered > MANY) {
    struct timespec until = {(time_t)(end / 1000000000u), (long)(end % 1000000000u)};
    slept_for = awaited;
    ++sleepers;
    while ((int32_t)(arrivals - awaited) < 0 && pthread_cond_clockwait(&enough, &turns, CLOCK_MONOTONIC, &until) == 0) continue;
    --sleepers;
  } else {
    pthread_mutex_unlock(&turns);
    while ((int32_t)(arrivals - awaited) < 0 && now_ns() < end) sched_yield();
    pthread_mutex_lock(&turns);
  }
  ran = still_there(before);
  if (ran == NULL) return;
  if ((int32_t)(arrivals - awaited) < 0)
    ran->hope -= ran->hope > 0;
  else
    ran->hope += ran->hope < MOST_HOPE;
}

/* Choose the next instance and take its batch; the caller ran `before` (NULL: nothing yet). On NULL, when nothing is
 * queued, the caller stops being a runner. */
static Instance* take_turn(Call** batch, const Instance* before)
{
  pthread_mutex_lock(&turns);
  if (before != NULL) linger(before);
  Instance* chosen = next_ready();
  if (chosen == NULL) {
    --runners;
  } else {
    turn[chosen->inner] = chosen->next;
    chosen->running = true;
    *batch = chosen->first;
    Call* end = chosen->first;
    uint64_t users = end->users;
    while (end->next != NULL && users + end->next->users <= chosen->most_users) {
      end = end->next;
      users += end->users;
    }
    chosen->first = end->next;
    end->next = NULL;
    if (chosen->first == NULL) chosen->last = &chosen->first;
  }
  pthread_mutex_unlock(&turns);
  return chosen;
}

static void end_turn(Instance* instance)
{
  pthread_mutex_lock(&turns);
  instance->running = false;
  pthread_mutex_unlock(&turns);
}

/* Python's objects of a batch. */
typedef struct {
  PyObject *requests, *answers;
} Objects;

/* Run the readable requests of a batch in one call into Python, and write their responses; `begin` and `end` time the
 * call itself. */
static Objects run(Instance* instance, Call* batch, uint64_t* begin, uint64_t* end)
{
  ssize_t good = 0;
  uint64_t rows = 0;
  for (Call* call = batch; call != NULL; call = call->next) {
    call->failed = read_request(&instance->kind, call->request, &call->read);
    call->place = call->failed == NULL ? good++ : -1;
    call->row = rows;
    if (call->failed == NULL) rows += call->users;
  }
  PyObject* list = PyList_New(good);
  for (Call* call = batch; call != NULL; call = call->next) {
    if (list != NULL && call->place >= 0)
      PyList_SetItem(list, call->place, call->read);
    else if (call->read != NULL)
      Py_DecRef(call->read);
  }
  *begin = now_ns();
  PyObject* answers = list == NULL || good == 0 ? NULL : PyObject_CallFunctionObjArgs(instance->execute, list, NULL);
  *end = now_ns();
  TRITONSERVER_Error* broken = answers == NULL && good > 0 ? python_error("the model broke") : NULL;
  /* A single answer to several requests covers the whole batch: each request gets its rows. */
  bool shared = broken == NULL && good > 1 && PyList_Size(answers) == 1;
  for (Call* call = batch; call != NULL; call = call->next) {
    if (call->failed == NULL)
      call->failed = TRITONBACKEND_ResponseNew(&call->response, call->request);
    else
      log_and_delete(TRITONBACKEND_ResponseNew(&call->response, call->request));
    if (call->failed != NULL) continue;
    call->failed = broken != NULL ? TRITONSERVER_ErrorNew(ERROR_INTERNAL, TRITONSERVER_ErrorMessage(broken))
                                  : write_answer(call, PyList_GetItem(answers, shared ? 0 : call->place), shared);
  }
  if (broken != NULL) TRITONSERVER_ErrorDelete(broken);
  return (Objects){list, answers};
}

/* Free a batch's objects, and let the model do what callers need not wait for. */
static void settle(Instance* instance, Objects objects)
{
  if (objects.answers != NULL) Py_DecRef(objects.answers);
  if (objects.requests != NULL) Py_DecRef(objects.requests);
  PyObject* done = PyObject_CallFunctionObjArgs(instance->settle, NULL);
  if (done == NULL)
    log_and_delete(python_error("model: settle"));
  else
    Py_DecRef(done);
}

/* Run a batch, send its responses, report statistics and release its requests. */
static void answer(Instance* instance, Call* batch)
{
  uint64_t users = 0, begin = now_ns(), compute_begin = 0, compute_end = 0;
  enter_python();
  Objects objects = run(instance, batch, &compute_begin, &compute_end);
  leave_python();
  instance->answered = 0;
  for (Call* call = batch; call != NULL; call = call->next) ++instance->answered;
  instance->awaited = arrivals + instance->answered;
  /* Without the GIL: sending is Triton's work, and another instance may compute meanwhile. */
  for (Call* call = batch; call != NULL; call = call->next)
    if (call->response != NULL)
      log_and_delete(TRITONBACKEND_ResponseSend(call->response, RESPONSE_FINAL, call->failed));
  uint64_t end = now_ns();
  /* Before the requests are released, since the objects refer to their memory. */
  enter_python();
  settle(instance, objects);
  leave_python();
  for (Call* call = batch; call != NULL; call = call->next) {
    users += call->users;
    log_and_delete(TRITONBACKEND_ModelInstanceReportStatistics(instance->triton, call->request, call->failed == NULL,
                                                               begin, compute_begin, compute_end, end));
    if (call->failed != NULL) TRITONSERVER_ErrorDelete(call->failed);
  }
  log_and_delete(TRITONBACKEND_ModelInstanceReportBatchStatistics(instance->triton, users, begin, compute_begin,
                                                                  compute_end, end));
  /* Before the requests are released: after the last one, Triton may finalise the instance. */
  end_turn(instance);
  for (Call* next; batch != NULL; batch = next) {
    next = batch->next;
    log_and_delete(TRITONBACKEND_RequestRelease(batch->request, RELEASE_ALL));
    free(batch);
  }
}

/* Run up to `most` batches; return whether there may be more. */
static bool run_turns(uint32_t most)
{
  Call* batch = NULL;
  Instance* instance = NULL;
  for (uint32_t number = 0; number < most; ++number) {
    instance = take_turn(&batch, instance);
    if (instance == NULL) return false;
    answer(instance, batch);
  }
  return true;
}

static void* run_spare(void* unused)
{
  while (true) {
    pthread_mutex_lock(&turns);
    while (handed_over == 0) pthread_cond_wait(&spare_wanted, &turns);
    --handed_over;
    pthread_mutex_unlock(&turns);
    leave_processor();
    while (run_turns(UINT32_MAX)) continue;
    keep_processor();
  }
  return unused;
}

EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* triton_instance,
                                                              TRITONBACKEND_Request** requests, uint32_t count)
{
  Instance* instance = NULL;
  bool run_here = false;
  leave_processor();
  TRY(TRITONBACKEND_ModelInstanceState(triton_instance, (void**)&instance));
  TRY(put_down(instance, requests, count, &run_here));
  /* Several requests at once are a load under which processors are busy anyway. */
  bool keep = run_here && count == 1;
  while (run_here && run_turns(PATIENCE)) {
    pthread_mutex_lock(&turns);
    run_here = !hand_over();
    pthread_mutex_unlock(&turns);
  }
  if (keep) keep_processor();
  return NULL;
}
