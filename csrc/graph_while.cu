// A while loop in a CUDA graph that is being captured. See pgraft_fast/sampling/device_while.py.
//
// The capturing graph gets set_kernel and then a conditional node, whose body graph is captured on a second stream and
// ends with set_kernel. Source: CUDA Programming Guide, conditional graph nodes.
#include <cuda_runtime.h>
#include <stdint.h>

#if CUDART_VERSION < 12040
#error "a loop in a CUDA graph needs version 12.4 or newer of the CUDA toolkit"
#endif

#define PGRAFT_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// One thread. Counts the iterations, from 0 before the first, and asks for the next one.
__global__ void set_kernel(cudaGraphConditionalHandle handle, const int32_t* condition, int32_t* count, int32_t limit,
                           bool first) {
  const int32_t done = first ? 0 : *count + 1;
  *count = done;
  cudaGraphSetConditional(handle, *condition != 0 && done < limit ? 1 : 0);
}

cudaError_t launch(cudaStream_t stream, cudaGraphConditionalHandle handle, const int32_t* condition, int32_t* count,
                   int32_t limit, bool first) {
  void* arguments[] = {&handle, &condition, &count, &limit, &first};
  return cudaLaunchKernel(reinterpret_cast<const void*>(&set_kernel), dim3(1), dim3(1), arguments, 0, stream);
}

struct Capture {
  cudaGraph_t graph = nullptr;
  const cudaGraphNode_t* nodes = nullptr;  // those the next node will depend on; valid until the stream is used
  size_t n_nodes = 0;
};

// Edge data is neither asked for nor given: the edge from an ordinary launch has none.
cudaError_t get_capture(cudaStream_t stream, Capture* found) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
#if CUDART_VERSION >= 13000
  const cudaError_t error =
      cudaStreamGetCaptureInfo(stream, &status, nullptr, &found->graph, &found->nodes, nullptr, &found->n_nodes);
#else
  const cudaError_t error =
      cudaStreamGetCaptureInfo_v2(stream, &status, nullptr, &found->graph, &found->nodes, &found->n_nodes);
#endif
  if (error != cudaSuccess || status == cudaStreamCaptureStatusActive) return error;
  return status == cudaStreamCaptureStatusNone ? cudaErrorIllegalState : cudaErrorStreamCaptureInvalidated;
}

cudaError_t add_node(const Capture& capture, cudaGraphNodeParams* params, cudaGraphNode_t* node) {
#if CUDART_VERSION >= 13000
  return cudaGraphAddNode(node, capture.graph, capture.nodes, nullptr, capture.n_nodes, params);
#else
  return cudaGraphAddNode(node, capture.graph, capture.nodes, capture.n_nodes, params);
#endif
}

// The stream continues after this node, whatever it did before.
cudaError_t continue_after(cudaStream_t stream, cudaGraphNode_t* node) {
#if CUDART_VERSION >= 13000
  return cudaStreamUpdateCaptureDependencies(stream, node, nullptr, 1, cudaStreamSetCaptureDependencies);
#else
  return cudaStreamUpdateCaptureDependencies(stream, node, 1, cudaStreamSetCaptureDependencies);
#endif
}

}  // namespace

#define PGRAFT_TRY(call) \
  if (const cudaError_t error = (call); error != cudaSuccess) return error

PGRAFT_EXPORT const char* pgraft_while_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

// Load the kernel on the current device. Loading may allocate, which a capture elsewhere forbids in the default mode.
PGRAFT_EXPORT int pgraft_while_prepare() {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  PGRAFT_TRY(cudaThreadExchangeStreamCaptureMode(&mode));
  cudaFuncAttributes attributes;
  const cudaError_t loaded = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&set_kernel));
  PGRAFT_TRY(cudaThreadExchangeStreamCaptureMode(&mode));
  return loaded;
}

// Add the loop to the graph that `outer` captures; `body` captures an iteration from here to pgraft_while_end.
PGRAFT_EXPORT int pgraft_while_begin(cudaStream_t outer, cudaStream_t body, const int32_t* condition, int32_t* count,
                                     int32_t limit, cudaGraphConditionalHandle* handle) {
  Capture capture;
  PGRAFT_TRY(get_capture(outer, &capture));
  PGRAFT_TRY(cudaGraphConditionalHandleCreate(handle, capture.graph, 0, 0));
  PGRAFT_TRY(launch(outer, *handle, condition, count, limit, true));
  PGRAFT_TRY(get_capture(outer, &capture));
  cudaGraphNodeParams params = {};
  params.type = cudaGraphNodeTypeConditional;
  params.conditional.handle = *handle;
  params.conditional.type = cudaGraphCondTypeWhile;
  params.conditional.size = 1;
  cudaGraphNode_t node = nullptr;
  PGRAFT_TRY(add_node(capture, &params, &node));
  PGRAFT_TRY(continue_after(outer, &node));
  return cudaStreamBeginCaptureToGraph(body, params.conditional.phGraph_out[0], nullptr, nullptr, 0,
                                       cudaStreamCaptureModeThreadLocal);
}

// Close the iteration. The capture of `body` ends also where this fails.
PGRAFT_EXPORT int pgraft_while_end(cudaStream_t body, const int32_t* condition, int32_t* count, int32_t limit,
                                   cudaGraphConditionalHandle handle) {
  const cudaError_t launched = launch(body, handle, condition, count, limit, false);
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(body, &graph);
  return launched != cudaSuccess ? launched : ended;
}
