"""What captures ask of torch.cuda, where there is no CUDA."""

from contextlib import contextmanager
from types import SimpleNamespace

CACHED, CAPTURED = 700, 64


class Cuda:
    """Streams, an allocator with a cache, and captures, in the order that torch has them."""

    def __init__(self):
        self.cached, self.held, self.streams, self.used = CACHED, 0, [], []
        self.default = self.now = self.Stream("cpu")

    def Stream(self, device):  # noqa: N802
        self.streams.append(SimpleNamespace(wait_stream=lambda other: None))
        return self.streams[-1]

    def current_stream(self, device=None):
        return self.now

    def set_stream(self, stream):
        self.now = stream

    @contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream
        yield
        self.now = before

    def empty_cache(self):
        self.cached = 0

    def memory_reserved(self, device):
        return self.cached + self.held

    def graph_pool_handle(self):
        return (0, 1)

    def current_device(self):
        return 0

    def graph(self, graph, pool, stream, **options):
        @contextmanager
        def capturing():
            self.empty_cache()
            self.used.append(stream)
            # As torch: where the end raises, the stream stays.
            self.now = stream
            yield
            self.held += CAPTURED
            self.now = self.default

        return capturing()

    def CUDAGraph(self):  # noqa: N802
        return SimpleNamespace(replay=lambda: None)

    def get_rng_state(self, device):
        return 0

    def set_rng_state(self, state, device):
        pass

    def synchronize(self, device):
        pass

    def is_available(self):
        return False
