/* Makes the functions of this library callable as Python functions that take arrays without conversion.
 *
 * A call through ctypes takes longer than most of the functions themselves, above all after a pause, when
 * the code of ctypes has left the caches. The few parts of Python's stable ABI that are needed are declared
 * here and in python_abi.h; the Python process that loads this library provides them.
 */
#define _POSIX_C_SOURCE 199309L /* clock_gettime */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>

#include "python_abi.h"

#define EXPORT __attribute__((visibility("default")))

typedef struct {
  const char* name;
  PyObject* (*function)(PyObject* self, PyObject* const* given, ssize_t count);
  int flags;
  const char* doc;
} PyMethodDef;
enum { METHOD_FASTCALL = 0x80 };

extern PyObject _Py_NoneStruct, *PyExc_TypeError;
PyObject* PyCFunction_NewEx(PyMethodDef* method, PyObject* self, PyObject* module);
PyObject* PyErr_NoMemory(void);
PyObject* PyErr_Occurred(void);
PyObject* PyErr_Format(PyObject* type, const char* format, ...);
void PyErr_Clear(void);
int PyObject_IsInstance(PyObject* object, PyObject* type);
int PyObject_GetBuffer(PyObject* object, Py_buffer* view, int flags);
void PyBuffer_Release(Py_buffer* view);
long long PyLong_AsLongLong(PyObject* number);
unsigned long long PyLong_AsUnsignedLongLongMask(PyObject* number);
void* PyLong_AsVoidPtr(PyObject* number);
PyObject* PyLong_FromLongLong(long long value);
char* PyBytes_AsString(PyObject* bytes);
PyObject* PyTuple_GetItem(PyObject* tuple, ssize_t index);
ssize_t PyTuple_Size(PyObject* tuple);
PyThreadState* PyEval_SaveThread(void);
void PyEval_RestoreThread(PyThreadState* state);

/* Numbers and addresses are passed in the same way, and a function with fewer parameters ignores the rest. */
enum { MOST = 13 };
typedef int64_t Function(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                         int64_t, int64_t);

/* The buffers that a call holds until it returns, and what tells NumPy's arrays. */
typedef struct {
  size_t count;
  Py_buffer* views;
  void** places; /* addresses of the arrays of a tuple */
  PyObject* array_type;
  ssize_t before; /* size of a Python object without contents */
} Held;

/* What NumPy's array object holds, in this order in NumPy 1.x and 2.x: compiled extensions read it so too. */
typedef struct {
  void* data;
  int dims;
  ssize_t *shape, *strides;
  PyObject *base, *descr;
  int flags;
} ArrayContents;
enum { ARRAY_IN_ORDER = 1 };

/* Return the address of a contiguous NumPy array, which the caller keeps alive; NULL for anything else. */
static void* address_of(PyObject* array, const Held* held)
{
  const int is_array = PyObject_IsInstance(array, held->array_type);
  if (is_array < 0) PyErr_Clear();
  if (is_array != 1) return NULL;
  const ArrayContents* contents = (const ArrayContents*)((const char*)array + held->before);
  return contents->flags & ARRAY_IN_ORDER ? contents->data : NULL;
}

/* Get the address of a contiguous array, and hold it where that is needed; NULL for None. NumPy takes longer to give a
 * buffer than most functions take. */
static bool hold(PyObject* array, Held* held, void** place)
{
  *place = array == &_Py_NoneStruct ? NULL : address_of(array, held);
  if (*place != NULL || array == &_Py_NoneStruct) return true;
  if (PyObject_GetBuffer(array, &held->views[held->count], BUFFER_SIMPLE) != 0) return false;
  *place = held->views[held->count++].buf;
  return true;
}

/* Read an argument: n is a number, p an array or None, t a tuple of arrays. */
static bool read_argument(char kind, PyObject* given, Held* held, int64_t* value)
{
  void* place = NULL;
  if (kind == 'n') {
    *value = (int64_t)PyLong_AsUnsignedLongLongMask(given); /* some are unsigned */
    return *value != -1 || PyErr_Occurred() == NULL;
  }
  if (kind == 'p') {
    if (!hold(given, held, &place)) return false;
    *value = (int64_t)(intptr_t)place;
    return true;
  }
  for (ssize_t index = 0; index < PyTuple_Size(given); ++index)
    if (!hold(PyTuple_GetItem(given, index), held, &held->places[index])) return false;
  *value = (int64_t)(intptr_t)held->places;
  return true;
}

/* Allocate the buffers for all arrays of a call, which may have one tuple. */
static bool make_room(const char* kinds, PyObject* const* given, Held* held)
{
  size_t views = 1, places = 1;
  for (size_t index = 0; kinds[index] != '\0'; ++index) {
    ssize_t count = kinds[index] == 't' ? PyTuple_Size(given[index]) : 1;
    if (count < 0) return false;
    views += (size_t)count;
    if (kinds[index] == 't') places = (size_t)count + 1;
  }
  held->views = malloc(views * sizeof *held->views + places * sizeof *held->places);
  held->places = (void**)(held->views + views);
  if (held->views == NULL) PyErr_NoMemory();
  return held->views != NULL;
}

/* Getting the GIL back after a call, once it was given away, takes longer than most calls, and other threads may keep it. So
 * it is kept if the last calls of a function, SHORT_CALLS of them, took less than SHORT_NS each. */
enum { SHORT_NS = 50000, SHORT_CALLS = 16 };

static int64_t now_ns(void)
{
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Call the function in `self` (see bind_function). */
static PyObject* call(PyObject* self, PyObject* const* given, ssize_t count)
{
  Function* function = NULL;
  *(void**)(&function) = PyLong_AsVoidPtr(PyTuple_GetItem(self, 0));
  const char* kinds = PyBytes_AsString(PyTuple_GetItem(self, 1));
  int64_t v[MOST] = {0}, found = 0;
  Held held = {0, NULL, NULL, PyTuple_GetItem(self, 2), PyLong_AsLongLong(PyTuple_GetItem(self, 3))};
  if ((size_t)count != strlen(kinds)) return PyErr_Format(PyExc_TypeError, "expected %s, got %zd arguments", kinds, count);
  bool good = make_room(kinds, given, &held);
  for (ssize_t index = 0; good && index < count; ++index) good = read_argument(kinds[index], given[index], &held, &v[index]);
  if (good) {
    int64_t* short_calls = address_of(PyTuple_GetItem(self, 4), &held);
    PyThreadState* state = *short_calls < SHORT_CALLS ? PyEval_SaveThread() : NULL;
    const int64_t before = now_ns();
    found = function(v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12]);
    const bool was_short = now_ns() - before < SHORT_NS;
    if (state != NULL) PyEval_RestoreThread(state);
    *short_calls = was_short ? *short_calls + 1 : 0;
  }
  for (size_t index = 0; index < held.count; ++index) PyBuffer_Release(&held.views[index]);
  free(held.views);
  return good ? PyLong_FromLongLong(found) : NULL;
}

/* Return a Python function for `self`: a tuple of its address, its argument kinds as bytes, NumPy's array type, the size of
 * a Python object without contents, and an array of one number, how many calls in a row were short. */
EXPORT PyObject* bind_function(PyObject* self)
{
  static PyMethodDef method = {"call", call, METHOD_FASTCALL, NULL};
  const char* kinds = PyBytes_AsString(PyTuple_GetItem(self, 1));
  if (strlen(kinds) > MOST) return PyErr_Format(PyExc_TypeError, "a function takes at most %d arguments", MOST);
  if (strchr(kinds, 't') != strrchr(kinds, 't'))
    return PyErr_Format(PyExc_TypeError, "a function takes at most one tuple of arrays, got %s", kinds);
  return PyCFunction_NewEx(&method, self, NULL);
}
