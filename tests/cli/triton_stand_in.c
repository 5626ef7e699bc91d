/* The part of Triton's backend API that tiercel_backend.c calls, with requests that a test makes up. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  int code;
  char text[4096];
} Error;
typedef struct {
  const char* name;
  int type;
  int64_t shape[4];
  uint32_t dims, buffers;
  uint64_t size;
  const void* parts[64];
  uint64_t sizes[64];
  int memory;
} Input;
typedef struct {
  char name[64];
  int type;
  int64_t shape[4];
  uint32_t dims;
  uint64_t size;
  void* buffer;
} Output;
typedef struct {
  uint32_t inputs, outputs;
  Input input[4];
  Output output[4];
  int code; /* error code of the answer, -1 for success, -2 for no answer */
  char message[4096];
  bool released, counted, success, cancelled;
} Request;

static char config[256];
static void* state[8]; /* by instance; instances are small numbers here */
_Atomic uint64_t users, most_users; /* sum over batches, largest batch */
uint32_t api_major = 1, api_minor = 19;

void stand_in_config(const char* text) { strncpy(config, text, sizeof config - 1); }
Error* TRITONSERVER_ErrorNew(int code, const char* text)
{
  Error* made = calloc(1, sizeof *made);
  made->code = code;
  strncpy(made->text, text, sizeof made->text - 1);
  return made;
}
void TRITONSERVER_ErrorDelete(Error* error) { free(error); }
const char* TRITONSERVER_ErrorMessage(Error* error) { return error->text; }
Error* TRITONSERVER_LogMessage(int level, const char* file, int line, const char* text)
{
  return level + line && file && text ? NULL : NULL;
}
Error* TRITONSERVER_MessageSerializeToJson(void* message, const char** base, size_t* size)
{
  *base = message;
  *size = strlen(message);
  return NULL;
}
Error* TRITONSERVER_MessageDelete(void* message) { return message ? NULL : NULL; }
Error* TRITONBACKEND_ApiVersion(uint32_t* major, uint32_t* minor)
{
  *major = api_major;
  *minor = api_minor;
  return NULL;
}
Error* TRITONBACKEND_BackendConfig(void* backend, void** made)
{
  *made = backend ? config : config;
  return NULL;
}
Error* TRITONBACKEND_ModelInstanceModel(void* instance, void** model)
{
  *model = instance;
  return NULL;
}
Error* TRITONBACKEND_ModelInstanceDeviceId(void* instance, int32_t* device)
{
  *device = (int32_t)(uintptr_t)instance;
  return NULL;
}
Error* TRITONBACKEND_ModelRepository(void* model, int* kind, const char** location)
{
  *kind = model ? 0 : 0;
  *location = "/nowhere";
  return NULL;
}
Error* TRITONBACKEND_ModelConfig(void* model, uint32_t version, void** made)
{
  /* Models from 4 on are inner ones, whose requests Triton does not batch. */
  const char* gathers = (uintptr_t)model < 4 ? "{\"max_batch_size\":4,\"dynamic_batching\":{}}" : "{\"max_batch_size\":4}";
  *made = model && version ? (void*)gathers : "";
  return NULL;
}
Error* TRITONBACKEND_ModelInstanceSetState(void* instance, void* value)
{
  state[(uintptr_t)instance] = value;
  return NULL;
}
Error* TRITONBACKEND_ModelInstanceState(void* instance, void** value)
{
  *value = state[(uintptr_t)instance];
  return NULL;
}
Error* TRITONBACKEND_RequestInputCount(Request* request, uint32_t* count)
{
  *count = request->inputs;
  return NULL;
}
Error* TRITONBACKEND_RequestInputByIndex(Request* request, uint32_t index, Input** input)
{
  *input = &request->input[index];
  return NULL;
}
Error* TRITONBACKEND_RequestOutputCount(Request* request, uint32_t* count)
{
  *count = request->inputs;
  return NULL;
}
Error* TRITONBACKEND_RequestOutputName(Request* request, uint32_t index, const char** name)
{
  *name = request->input[index].name;
  return NULL;
}
Error* TRITONBACKEND_RequestIsCancelled(Request* request, bool* cancelled)
{
  *cancelled = request->cancelled;
  return NULL;
}
Error* TRITONBACKEND_InputProperties(Input* input, const char** name, int* type, const int64_t** shape, uint32_t* dims,
                                     uint64_t* size, uint32_t* buffers)
{
  *name = input->name;
  *type = input->type;
  *shape = input->shape;
  *dims = input->dims;
  *size = input->size;
  *buffers = input->buffers;
  return NULL;
}
Error* TRITONBACKEND_InputBuffer(Input* input, uint32_t index, const void** buffer, uint64_t* size, int* memory, int64_t* id)
{
  *buffer = input->parts[index];
  *size = input->sizes[index];
  *memory = input->memory;
  *id = 0;
  return NULL;
}
Error* TRITONBACKEND_ResponseNew(Request** response, Request* request)
{
  *response = request;
  return NULL;
}
Error* TRITONBACKEND_ResponseOutput(Request* response, Output** output, const char* name, int type, const int64_t* shape,
                                    uint32_t dims)
{
  *output = &response->output[response->outputs++];
  strncpy((*output)->name, name, sizeof(*output)->name - 1);
  (*output)->type = type;
  (*output)->dims = dims;
  memcpy((*output)->shape, shape, dims * sizeof *shape);
  return NULL;
}
Error* TRITONBACKEND_OutputBuffer(Output* output, void** buffer, uint64_t size, int* memory, int64_t* id)
{
  output->size = size;
  *buffer = output->buffer = malloc(size ? size : 1);
  *memory = 0;
  *id = 0;
  return NULL;
}
Error* TRITONBACKEND_ResponseSend(Request* response, uint32_t flags, Error* error)
{
  response->code = error == NULL ? -(int)flags : error->code;
  if (error != NULL) strncpy(response->message, error->text, sizeof response->message - 1);
  return NULL;
}
Error* TRITONBACKEND_RequestRelease(Request* request, uint32_t flags)
{
  request->released = flags == 1;
  return NULL;
}
Error* TRITONBACKEND_ModelInstanceReportStatistics(void* instance, Request* request, bool success, uint64_t begin,
                                                   uint64_t compute_begin, uint64_t compute_end, uint64_t end)
{
  request->counted = instance && begin <= compute_begin && compute_begin <= compute_end && compute_end <= end;
  request->success = success;
  return NULL;
}
Error* TRITONBACKEND_ModelInstanceReportBatchStatistics(void* instance, uint64_t batch, uint64_t begin,
                                                        uint64_t compute_begin, uint64_t compute_end, uint64_t end)
{
  if (instance && begin <= compute_begin && compute_end <= end) users += batch;
  if (batch > most_users) most_users = batch;
  return NULL;
}
