/* Types of Python's stable ABI, for libraries that are built without Python's headers. */
#ifndef TIERCEL_PYTHON_ABI_H
#define TIERCEL_PYTHON_ABI_H

#include <sys/types.h>

typedef struct PyObject PyObject;
typedef struct PyThreadState PyThreadState;
typedef struct {
  void* buf;
  PyObject* obj;
  ssize_t len, itemsize;
  int readonly, ndim;
  char* format;
  ssize_t *shape, *strides, *suboffsets;
  void* internal;
} Py_buffer;
enum { BUFFER_SIMPLE = 0 };

#endif
