"""What is measured of a teacher is right, is kept, and serves any number of students of the same teacher and sample."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import FAMILIES, LAYERS, tiny, tiny_sequences

from stillroom.models.families.registry import family_of
from stillroom.recipe.student import ImportanceConfig
from stillroom.students import measured as module
from stillroom.students.importance import Sample, judged_kl, judged_logprobs, leave_one_out_kl, repaired_on
from stillroom.students.layerwise import Layerwise
from stillroom.students.measured import Measured

SAMPLE = Sample.of(tiny_sequences(6), 144)


@pytest.mark.parametrize("family", FAMILIES)
def test_leave_one_out_is_the_kl_of_the_model_without_the_layer(family: str) -> None:
    model = tiny(family, seed=4)
    adapter = family_of(model)
    found = leave_one_out_kl(model, adapter, SAMPLE.judge)
    assert len(found) == LAYERS
    reference = judged_logprobs(model, SAMPLE.judge)
    for index in (0, LAYERS // 2, LAYERS - 1):
        without = copy.deepcopy(model)
        # Layers keep what they are (a window, say); only the one is gone.
        layers = without.base_model.layers
        without.base_model.layers = torch.nn.ModuleList(layer for number, layer in enumerate(layers) if number != index)
        kept_types = [
            kind for number, kind in enumerate(getattr(model.config, "layer_types", None) or []) if number != index
        ]
        if kept_types:
            without.config.layer_types = kept_types
        without.config.num_hidden_layers = LAYERS - 1
        assert found[index] == pytest.approx(judged_kl(reference, without, SAMPLE.judge), rel=1e-4, abs=1e-6)


def test_a_layer_that_does_nothing_costs_nothing() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight.zero_()
        model.model.layers[2].self_attn.o_proj.weight.zero_()
    found = leave_one_out_kl(model, family_of(model), SAMPLE.judge)
    assert found[2] == pytest.approx(0, abs=1e-6)
    assert min(value for index, value in enumerate(found) if index != 2) > 1e-5


def test_it_is_kept_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    adapter = family_of(model)
    file = tmp_path / "importance.safetensors"
    first = Measured.of(model, adapter, SAMPLE, leave_one_out=True, file=file, digest="a")
    first.order(model, adapter)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("measured again")

    for name in ("block_influence", "leave_one_out_kl", "measure_widths", "measure_orders"):
        monkeypatch.setattr(module, name, refuse)
    again = Measured.of(model, adapter, SAMPLE, leave_one_out=True, file=file, digest="a")
    again.order(model, adapter)
    assert first.tensors().keys() == again.tensors().keys()
    assert all(torch.equal(value, again.tensors()[name]) for name, value in first.tensors().items())
    with pytest.raises(AssertionError, match="measured again"):
        Measured.of(model, adapter, SAMPLE, file=file, digest="another teacher")
    with pytest.raises(AssertionError, match="measured again"):
        Measured.of(model, adapter, Sample.of(tiny_sequences(5), 120), file=file, digest="a")


def test_a_cut_off_file_is_measured_anew(tmp_path: Path) -> None:
    model = tiny("llama")
    file = tmp_path / "importance.safetensors"
    first = Measured.of(model, family_of(model), SAMPLE, file=file, digest="a")
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    again = Measured.of(model, family_of(model), SAMPLE, file=file, digest="a")
    assert again.influence == first.influence
    assert file.read_bytes() == whole


def test_the_repair_takes_more_text_and_never_what_judges_it() -> None:
    text = tiny_sequences(24)
    length = text.length
    alone = Sample.of(text, 12 * length)
    assert alone.repair is alone.fit
    for wanted, there in ((4, 4), (10, 10), (15, 15), (100, 22)):
        sample = Sample.of(text, 12 * length, wanted * length)
        # What is measured is the same, so that it is measured once.
        assert sample.digests == alone.digests
        assert len(sample.repair) == there
        assert (
            repaired_on(ImportanceConfig(tokens=12 * length, repair_tokens=wanted * length), 24 * length)
            == there * length
        )
        assert not set(sample.repair.digests) & set(sample.judge.digests)
        assert set(sample.fit.digests) & set(sample.repair.digests)
    assert repaired_on(ImportanceConfig(tokens=12 * length), 24 * length) == 10 * length


def test_what_is_behind_the_last_wanted_module_is_not_run() -> None:
    model = tiny("llama")
    adapter = family_of(model)
    walk = Layerwise(model, adapter, tiny_sequences(3))
    name = adapter.attention_output
    with torch.no_grad():
        results, whole = walk.run(inputs=[name], outputs=[name])
        walk.layers[0].mlp.register_forward_hook(lambda *_: pytest.fail("the feed-forward layer was run"))
        none, part = walk.run(inputs=[name], outputs=[name], upto=name)
    assert len(results) == 3
    assert none == []
    assert whole.keys() == part.keys()
    assert all(torch.equal(whole[key], part[key]) for key in whole)
