"""Layers that are stored in 16 bits or in the host's memory, and computed one at a time, give the same numbers."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from students.tiny_families import tiny, tiny_sequences
from tiny_models import tiny_model

from stillroom.models.at_hand import HALVES, hold, is_held, stack_of, whole
from stillroom.models.families.registry import family_of
from stillroom.models.forward import hidden_states, logits_from_hidden
from stillroom.models.load import load_teacher, stored_in_half
from stillroom.models.proof import prove
from stillroom.recipe.teacher import HuggingFaceTeacher
from stillroom.students.importance import Sample
from stillroom.students.measured import Measured
from stillroom.students.shape import Anatomy
from stillroom.students.shrink import shrink
from stillroom.teachers import registry
from tools.gpu.device import Device, There, move


def halved(family: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A float32 model whose every weight a 16-bit format holds."""
    model = tiny(family, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    return model.eval().requires_grad_(False)


def logits(model: Any, text: Any) -> torch.Tensor:
    return logits_from_hidden(model, hidden_states(model, text.ids, text.positions))


@pytest.mark.parametrize("dtype", HALVES)
def test_sixteen_bits_that_hold_all_weights_lose_nothing(dtype: torch.dtype) -> None:
    model, text = halved("llama", dtype), tiny_sequences(2)
    expected = logits(model, text)
    held = copy.deepcopy(model)
    hold(held, "cpu", torch.float32, "half")
    assert {parameter.dtype for parameter in stack_of(held).parameters()} == {dtype}
    assert held.get_input_embeddings().weight.dtype == torch.float32
    prove(held, again=True)
    with torch.no_grad():
        assert torch.allclose(logits(held, text), expected, atol=1e-5)
    assert {parameter.dtype for parameter in stack_of(held).parameters()} == {dtype}, "the copies have gone"
    whole(held, torch.float32)
    assert not is_held(held)
    assert all(torch.equal(a, b) for a, b in zip(held.parameters(), model.parameters(), strict=True))


def test_a_weight_that_sixteen_bits_do_not_hold_stays_as_it_is() -> None:
    model = halved("llama")
    odd = stack_of(model)[1].mlp.down_proj.weight  # type: ignore[union-attr]
    odd.data[0, 0] = 1 + 2**-20  # type: ignore[index,operator]
    hold(model, "cpu", torch.float32, "half")
    found = {name for name, held in stack_of(model).named_parameters() if held.dtype == torch.float32}
    assert found == {"1.mlp.down_proj.weight"}
    assert float(stack_of(model)[1].mlp.down_proj.weight[0, 0]) == 1 + 2**-20  # type: ignore[union-attr,index]


def test_an_error_in_a_layer_leaves_the_stored_weights() -> None:
    model, text = halved("llama"), tiny_sequences(1)
    hold(model, "cpu", torch.float32, "half")
    prove(model, again=True)
    layer: Any = stack_of(model)[0]

    def broken(_module: Any, _args: Any) -> None:
        raise RuntimeError("out of memory")

    with layer.mlp.register_forward_pre_hook(broken), pytest.raises(RuntimeError):
        hidden_states(model, text.ids, text.positions)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("family", "sizes"),
    [("llama", {"layers": 4}), ("gemma2", {"layers": 5, "channels": 32, "groups": 1, "hidden": 24})],
)
def test_a_student_of_a_teacher_in_sixteen_bits_is_that_of_one_in_float32(family: str, sizes: dict[str, int]) -> None:
    """On a GPU; layers, widths and the repair, to the bit."""
    text, model = tiny_sequences(6), halved(family)
    whole_shape = Anatomy.of(model, family_of(model), 0).teacher
    shape = dataclasses.replace(whole_shape, **sizes)
    found = []
    for keep in ("device", "half"):
        with Device("cuda:0") as device:
            there = move(copy.deepcopy(model), device)
            hold(there, device.where, torch.float32, keep)  # type: ignore[arg-type]
            sample = Sample.of(text, text.tokens)
            measured = Measured.of(there, family_of(there), sample, leave_one_out=True)
            student = shrink(there, family_of(there), shape, measured, True)
            assert all(parameter.dtype == torch.float32 for parameter in student.model.parameters())
            assert all(isinstance(parameter, There) for parameter in student.model.parameters())
            assert not is_held(student.model)
            state = {name: value.cpu() for name, value in student.model.state_dict().items()}
            found.append((student.kept, student.kl, student.healed_kl, measured.leave_one_out, state))
    assert found[0][:4] == found[1][:4]
    assert all(torch.equal(value, found[1][4][name]) for name, value in found[0][4].items())


def test_a_teacher_larger_than_the_gpu_stays_in_the_host_s_memory() -> None:
    """Its layers are carried to the device one at a time; what they give is what they give on the CPU."""
    model, text = halved("llama"), tiny_sequences(2)
    expected = logits(model, text)
    with Device("cuda:0") as device:
        hold(model, device.where, torch.float32, "host")
        assert isinstance(model.get_input_embeddings().weight, There)
        assert not any(isinstance(parameter, There) for parameter in stack_of(model).parameters())
        prove(model, again=True)
        found = logits(model, text).cpu()
        assert not any(isinstance(parameter, There) for parameter in stack_of(model).parameters())
    assert torch.allclose(found, expected, atol=1e-4)


def test_where_a_teacher_s_layers_are_stored(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model("llama", tmp_path / "teacher")
    config, cuda = HuggingFaceTeacher(name=str(folder)), torch.device("cuda")
    teacher = load_teacher(config, "cpu", torch.float32)
    assert not stored_in_half(config)
    teacher.model.to(torch.bfloat16).save_pretrained(folder)
    assert stored_in_half(config)

    def kept(memory: float, dtype: torch.dtype = torch.float32) -> str:
        return registry.keep_of(config, cuda, dtype, memory * teacher.parameters)

    assert [kept(6), kept(4), kept(2)] == ["device", "half", "host"]
    assert [kept(3, torch.bfloat16), kept(2, torch.bfloat16)] == ["device", "host"]
    assert registry.keep_of(config, torch.device("cpu"), torch.float32, 1.0) == "device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (2 * teacher.parameters, 0))
    with Device("cuda:0") as device:
        opened: Any = registry.open_teacher(config, device.where, torch.bfloat16)
        small: Any = registry.open_teacher(config, device.where, torch.float32, "half")
    assert is_held(opened.loaded.model)
    assert is_held(small.loaded.model)
    assert small.loaded.model.dtype == torch.float32
    assert not small.loaded.notes
    assert "carried over one at a time" in " ".join(opened.loaded.notes)
