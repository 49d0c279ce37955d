"""What a graph cannot repeat, on tensors of the "meta" device in the place of CUDA's."""

import pytest
import torch

from pgraft_fast.sampling import GraphCache, graphs
from pgraft_fast.sampling.host_traffic import HostTraffic, HostTrafficError

DEVICE = torch.device("meta")
X = torch.ones(3, device=DEVICE)
TABLE, PLACES = torch.arange(3.0), torch.tensor([0, 2], device=DEVICE)


def runs(function, traffic=None):
    """A run that is learned from, and one that repeats it."""
    traffic = HostTraffic(DEVICE) if traffic is None else traffic
    with traffic.learned():
        function()
    with traffic.repeated():
        function()
    return traffic


class Counter:
    def __init__(self):
        self.runs = 0

    def __call__(self):
        self.runs += 1
        return self.runs


@pytest.mark.parametrize(
    "bring",
    [
        lambda: TABLE.to(DEVICE),
        lambda: TABLE[1:].to(DEVICE, torch.float64),
        lambda: torch.tensor([1, 2], device="cpu").to(DEVICE),
        lambda: torch.tensor([1.0, 2.0], device=DEVICE),
        lambda: torch.as_tensor([1, 2], dtype=torch.float16, device=DEVICE),
        lambda: X.new_tensor([1.0, 2.0, 3.0]),
        lambda: torch.empty(2, 3, device=DEVICE).copy_(TABLE),
        lambda: torch.empty(3, device=DEVICE, dtype=torch.float16).copy_(TABLE),
    ],
)
def test_constants_of_the_host_are_kept(bring):
    made = []
    traffic = runs(lambda: made.append(bring()))
    assert len(traffic) == 1 and not traffic.changed
    first, again = made
    assert (again.shape, again.dtype, again.device) == (first.shape, first.dtype, first.device)


def test_what_a_run_writes_to_a_constant_stays_in_it():
    """On the host, where values are to be seen: "meta" stands for it."""
    device, source, made = torch.device("cpu"), torch.ones(2, device="meta"), torch.ones(2)
    traffic = HostTraffic(device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "equal", lambda a, b: True)
        traffic._learn(lambda: made, source)
        made.add_(5)
        assert traffic._repeat(None, source).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (lambda count: torch.tensor([count()]).to(DEVICE), "another one in each run"),
        (lambda count: torch.tensor([count()], device=DEVICE), "another one in each run"),
        (lambda count: [TABLE.to(DEVICE) for _ in range(count())], "another one in each run"),
        (lambda count: [TABLE.to(DEVICE) for _ in range(3 - count())], "more tensors from the host in some runs"),
        (lambda count: torch.rand(3).to(DEVICE), "another one in each run"),
    ],
)
def test_what_differs_is_refused(function, line):
    count = Counter()
    with pytest.raises(HostTrafficError, match=line):
        runs(lambda: function(count))


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: x.unique(),
        lambda x: x.to(torch.int64).bincount(), lambda x: x.masked_select(x > 0), lambda x: torch.equal(x, 2 * x),
        lambda x: torch.zeros(3).copy_(x), lambda x: x.repeat_interleave(x.to(torch.int64)),
        lambda x: x.clone().index_put_((x > 0,), torch.tensor(1.0, device=DEVICE)),
    ],
)  # fmt: skip
def test_what_is_read_back_is_refused(read):
    with pytest.raises(HostTrafficError, match=r"test_host_traffic.py, line \d+"):
        runs(lambda: read(X))


@pytest.mark.parametrize(
    "work",
    [
        lambda x: TABLE[TABLE > 1].sum().item(),
        lambda x: TABLE.nonzero(),
        lambda x: x[PLACES],
        lambda x: 2.0 * x + torch.tensor(3.0),
        lambda x: x.repeat_interleave(x.to(torch.int64), output_size=3),
        lambda x: x.to(torch.float16),
    ],
)
def test_all_else_is_none(work):
    assert len(runs(lambda: work(X))) == 0


def test_a_tensor_that_is_written_to():
    table = TABLE.clone()
    traffic = runs(lambda: table.to(DEVICE))
    assert not traffic.changed
    table.add_(1)
    assert traffic.changed


def test_a_graph_is_made_anew_where_a_constant_was_written_to(cuda):
    table, count = TABLE.clone(), Counter()

    def function(inputs, generators):
        count()
        return [inputs[0] + table.to(DEVICE)]

    cache = GraphCache()
    for _ in range(2):
        cache.run("key", function, [X])
    assert (len(cache), count.runs) == (1, 4)
    table.add_(1)
    cache.run("key", function, [X])
    assert (len(cache), count.runs) == (1, 8)


def test_one_that_reads_back_is_refused_and_others_are_captured(cuda, caplog):
    def reads(inputs, generators):
        return [inputs[0].nonzero()]

    cache = GraphCache()
    for _ in range(2):
        assert cache.run("reads", reads, [torch.ones(3)]) is None
    assert caplog.text.count("no CUDA graph can be made") == 1 and "nonzero" in caplog.text
    assert not graphs._failed and not cuda.used
    assert cache.run("other", lambda inputs, generators: [2 * inputs[0]], [X]) is not None


def test_what_is_compiled_is_not_watched(cuda):
    count = Counter()

    def function(inputs, generators):
        count()
        assert torch._C._len_torch_dispatch_stack() == 0
        return [2 * inputs[0]]

    assert GraphCache().run("key", function, [X], compiled=True) is not None
    assert count.runs == 3
