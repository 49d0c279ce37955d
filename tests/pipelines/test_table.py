"""What is kept of prompts on the device: rows where graphs read them, and calls that copy nothing from the host."""

import pytest
import torch
from denoisers import NAMES, denoiser
from fake_cuda import NoTransfers, on_fake_cuda, to_fake_cuda
from pipelines import build
from torch._subclasses.fake_tensor import FakeTensorMode

from pgraft_fast.errors import InputError
from pgraft_fast.pipelines.loop import NetCall
from pgraft_fast.pipelines.rules import CallRule, Constant, Explanation, Part, Time, Whole
from pgraft_fast.pipelines.table import PromptTable
from pgraft_fast.pipelines.ways import GUIDED, UNGUIDED

RULE = CallRule("net", (Whole(2, torch.float32), Constant(2)), {"size": Constant()}, Part(2))
TEXTS = ("a", "bbb", "cc", "dddd", "bbb with another size", "longer shape")


def table():
    """Two rows a prompt: the length of its text for the first copy, with a sign for the second."""
    recorded = []

    def record(number):
        recorded.append(number)
        length = float(len(TEXTS[number]))
        rows = torch.tensor([[length], [-length]]).repeat(1, 2 if number == 5 else 1)
        call = NetCall("net", (torch.zeros(2, 3), rows), {"size": torch.tensor([float(number == 4)])}, None)
        return [call]

    explanation = Explanation((RULE,), (1.0,), torch.float32)
    return PromptTable(explanation, record, len(TEXTS), torch.device("cpu")), recorded


def lengths(prompt_table, numbers):
    return list(prompt_table.rows(torch.tensor(numbers)))[1].flatten().tolist()


def test_prompts_are_asked_for_once():
    prompt_table, recorded = table()
    prompt_table.prepare([1, 1, 0])
    assert recorded == [0, 1] and prompt_table.on_device
    # All first copies come first.
    assert lengths(prompt_table, [1, 0, 1]) == [3.0, 1.0, 3.0, -3.0, -1.0, -3.0]
    prompt_table.prepare([2, 1])
    assert recorded == [0, 1, 2] and lengths(prompt_table, [2, 1]) == [2.0, 3.0, -2.0, -3.0]
    with pytest.raises(InputError, match=r"prepare\(\) did not bring"):
        list(prompt_table.rows(torch.tensor([0])))


def test_rows_stay_where_a_graph_reads_them():
    prompt_table, _ = table()
    prompt_table.prepare([0, 1])
    key = prompt_table.graph_key
    for numbers in ([2], [3, 1], [0, 2]):
        prompt_table.prepare(numbers)
        assert lengths(prompt_table, numbers)[: len(numbers)] == [float(len(TEXTS[number])) for number in numbers]
        assert prompt_table.graph_key == key
    # More rows than there is room for: the key is another one.
    prompt_table.prepare([0, 1, 2])
    assert prompt_table.graph_key != key and lengths(prompt_table, [0, 1, 2])[:3] == [1.0, 3.0, 2.0]


def test_prompts_of_other_shapes_or_shared_values_go_apart():
    prompt_table, _ = table()
    prompt_table.prepare([1, 4, 5])
    assert (prompt_table.kinds, prompt_table.on_device) == (3, False)
    assert len({prompt_table.kind(number) for number in (1, 4, 5)}) == 3
    rows = {number: list(prompt_table.rows(torch.tensor([number]), prompt_table.kind(number))) for number in (1, 4, 5)}
    assert [float(rows[number][2]) for number in (1, 4, 5)] == [0.0, 1.0, 0.0]
    assert rows[5][1].shape == (2, 2)


@pytest.mark.parametrize("name", NAMES)
def test_a_call_copies_nothing_from_the_host(name):
    """On fake CUDA tensors. The network returns its input: diffusers' own do not run on these without CUDA."""
    model = denoiser(build(name), guidance=3.0)
    assert model.can_be_captured and not model.runs_as_it_is
    fast = model.fast[GUIDED]
    model.net.forward = lambda *args, **kwargs: (args[0] if args else kwargs["hidden_states"],)
    with FakeTensorMode():
        to_fake_cuda(model)
        device = torch.device("cuda", 0)
        object.__setattr__(fast.driver.state, "device", device)
        held = fast.table
        held._device, held._place = device, on_fake_cuda(held._place)
        for kind, columns in held._columns.items():
            held._columns[kind] = [
                on_fake_cuda(column) if isinstance(column, torch.Tensor) else column for column in columns
            ]
        x = torch.randn(2, *model.facts.shape, device="cuda")
        t, numbers = torch.rand(2, device="cuda"), torch.arange(2, device="cuda")
        with NoTransfers(), torch.no_grad():
            out = model(x, t, numbers)
    assert out.shape == x.shape and out.device.type == "cuda"


def test_a_time_is_one_of_the_leaves():
    """Arguments that the loop works out itself have no columns."""
    rule = CallRule("net", (Whole(1, torch.float32), Time(1.0, None, torch.float32, True, 0)), {}, Part(1))
    call = NetCall("net", (torch.zeros(1, 3), torch.tensor(5.0)), {}, None)
    prompt_table = PromptTable(
        Explanation((rule,), (1.0,), torch.float32), lambda number: [call], 1, torch.device("cpu")
    )
    prompt_table.prepare([0])
    assert list(prompt_table.rows(torch.tensor([0, 0]))) == [None, None]


def test_graphs_are_told_apart_by_what_is_switched_on():
    pipe = build("sd")
    model = denoiser(pipe)
    before = model.graph_key
    assert model.like().graph_key == before
    pipe.unet.enable_freeu(0.9, 0.2, 1.2, 1.4)
    assert model.graph_key != before
    pipe.unet.disable_freeu()
    pipe.unet.set_attention_slice(1)
    assert model.graph_key != before
    assert model.like(way=UNGUIDED).graph_key != model.like(way=GUIDED).graph_key
