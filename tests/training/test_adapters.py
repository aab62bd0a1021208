"""LoRA: adapters alone are trained, a resumed run is the same to the bit, and what is merged computes what was trained."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import make_model
from torch import nn
from training import test_train_loop
from training.test_train_loop import CONFIG, LENGTH, ROWS, a_training

from stillroom.core.errors import RecipeError, RunError, UnsupportedModel, UsageError
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.training import DistillConfig, LoraConfig
from stillroom.training import adapters
from stillroom.training.checkpoint import unique_tensors
from stillroom.training.group import Group

LORA = LoraConfig(rank=4, alpha=8)
BASE = "b" * 64
taught = test_train_loop.taught


def an_adapted(lora: LoraConfig = LORA, dtype: torch.dtype = torch.float32, family: str = "llama") -> Any:
    model = make_model(family, rows=ROWS, layers=2, seed=9)
    adapters.attach(model, lora, dtype, 3)
    return model


def a_lora_training(taught, folder, lora=LORA, base=BASE, dtype=torch.float32, **changes):
    model = changes.pop("model", None) or an_adapted(lora, dtype)
    options = {key: changes.pop(key) for key in ("codec", "distill", "event") if key in changes}
    config = CONFIG.model_copy(update={"lora": lora, "learning_rate": 2e-2, **changes})
    training = a_training(taught, folder, config, model=model, **options)
    training.base = base
    return training


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(40).view(2, 20) % ROWS
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def moved(model: Any, seed: int = 0) -> Any:
    """A model whose adapters are no longer zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma2", "olmoe"])
@pytest.mark.parametrize("rslora", [False, True])
def test_the_merged_model_computes_what_the_adapters_did(family: str, rslora: bool) -> None:
    plain = make_model(family, rows=ROWS, layers=2, seed=9)
    names = {name: tensor.shape for name, tensor in plain.state_dict().items()}
    model = an_adapted(LORA.model_copy(update={"rslora": rslora}), family=family)
    assert torch.equal(logits(model), logits(plain)), "adapters begin at nothing"
    before = logits(moved(model))
    assert (before - logits(plain)).abs().max() > 0.01
    adapters.merge(model)
    assert (logits(model) - before).abs().max() < 1e-5 * max(1.0, float(before.abs().max()))
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == names
    assert not hasattr(model, "peft_config")


def test_the_product_counts_alpha_over_the_rank() -> None:
    for rslora, scale in ((False, 2.0), (True, 4.0)):
        model = moved(an_adapted(LORA.model_copy(update={"rslora": rslora, "targets": ("down_proj",)})))
        name = "model.layers.1.mlp.down_proj"
        layer = model.get_submodule(name)
        a, b = layer.lora_A.default.weight.detach(), layer.lora_B.default.weight.detach()
        expected = layer.base_layer.weight.detach() + scale * b @ a
        adapters.merge(model)
        torch.testing.assert_close(model.get_submodule(name).weight, nn.Parameter(expected))


@pytest.mark.parametrize("codec", ["threshold", "dense"])
def test_only_adapters_change_and_the_student_comes_closer(taught, tmp_path, codec) -> None:
    training = a_lora_training(taught, tmp_path, codec=codec)
    frozen = {n: p.detach().clone() for n, p in training.model.named_parameters() if not p.requires_grad}
    begun = {n: p.detach().clone() for n, p in training.model.named_parameters() if p.requires_grad}
    state = training.run()
    kls = [entry["kl"] for entry in state.history]
    assert state.best_kl == min(kls) < 0.9 * kls[0]
    now = dict(training.model.named_parameters())
    assert all(torch.equal(now[name], held) for name, held in frozen.items())
    assert not any(torch.equal(now[name], held) for name, held in begun.items())
    assert training.untouched == []


@pytest.mark.parametrize("objective", ["reverse_kl", "jensen_shannon", "total_variation"])
def test_every_objective_trains_adapters(taught, tmp_path, objective) -> None:
    state = a_lora_training(taught, tmp_path, codec="dense", objective=objective).run()
    assert state.best_kl < state.history[0]["kl"]


def test_gradients_of_adapters_are_those_of_autograd(taught, tmp_path) -> None:
    """A step of plain SGD would need no more than the gradient that the whole weights have: B's is s · dW Aᵀ."""
    from stillroom.training.losses.fused import FusedLoss
    from stillroom.training.losses.registry import make_objective
    from stillroom.training.network import LossNetwork

    source = a_training(taught, tmp_path).train
    batch = source.batch([0, 1])
    loss = FusedLoss(make_objective("forward_kl"), 0.0, 1.0, ROWS, 512)
    whole, model = make_model("llama", rows=ROWS, layers=2, seed=9), an_adapted()
    for one in (whole, model):
        network = LossNetwork(one, torch.float32)
        network.backward(network(batch, loss, 30.0).value, batch)
        network.collect()
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        layer = model.get_submodule(name)
        expected = 2.0 * whole.get_submodule(name).weight.grad @ layer.lora_A.default.weight.detach().T
        torch.testing.assert_close(layer.lora_B.default.weight.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "dropout"), [("float32", 0.0), ("float32", 0.2), ("bfloat16", 0.0), ("bfloat16", 0.2)]
)
def test_a_resumed_run_has_the_same_weights_to_the_bit(taught, tmp_path, precision, dropout) -> None:
    lora = LORA.model_copy(update={"dropout": dropout})
    options = {
        "lora": lora,
        "precision": precision,
        "dtype": getattr(torch, precision),
        "micro_batch_tokens": 2 * LENGTH,
    }
    whole = a_lora_training(taught, tmp_path / "whole", **options)
    expected = whole.run()

    def stop(**values: Any) -> None:
        if values.get("step") == 6 and "event" not in values:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        a_lora_training(taught, tmp_path / "killed", event=stop, **options).run()
    torch.rand(7)  # whatever the random state is
    resumed = a_lora_training(taught, tmp_path / "killed", **options)
    found = resumed.run()
    assert resumed.losses == whole.losses[-len(resumed.losses) :]
    assert 0 < len(resumed.losses) < len(whole.losses)
    assert found.history == expected.history
    theirs = unique_tensors(whole.model)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in unique_tensors(resumed.model).items())


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_activations_that_are_computed_again_are_the_same(taught, tmp_path, dropout) -> None:
    lora = LORA.model_copy(update={"dropout": dropout})
    losses = []
    for again in ("off", "on"):
        training = a_lora_training(taught, tmp_path / again, lora=lora, gradient_checkpointing=again, epochs=1)
        training.run()
        losses.append(training.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_dropout_is_drawn_anew_in_every_step(taught, tmp_path) -> None:
    some = a_lora_training(taught, tmp_path / "some", lora=LORA.model_copy(update={"dropout": 0.3}))
    none = a_lora_training(taught, tmp_path / "none")
    some.run()
    none.run()
    # B is zero in the first step, so that only later losses differ.
    assert some.losses[0] == none.losses[0]
    assert all(a != b for a, b in zip(some.losses[1:], none.losses[1:], strict=True))


def test_checkpoints_hold_adapters_alone_and_the_base_by_name(taught, tmp_path) -> None:
    training = a_lora_training(taught, tmp_path)
    training.run()
    trained = sum(p.numel() for p in training.model.parameters() if p.requires_grad)
    (file,) = tmp_path.glob("step-*/state.safetensors")
    (best,) = tmp_path.glob("best-*.safetensors")
    assert sum(tensor.numel() for tensor in load_file(best).values()) == trained
    held = load_file(file)
    numbers = sum(tensor.numel() for name, tensor in held.items() if name.startswith("model."))
    moments = sum(tensor.numel() for name, tensor in held.items() if name.endswith(("exp_avg", "exp_avg_sq")))
    assert (numbers, moments) == (trained, 2 * trained)
    for path in (file, best):
        with safe_open(path, "pt") as stream:
            assert stream.metadata()["base"] == BASE


def test_a_checkpoint_of_another_base_is_refused(taught, tmp_path) -> None:
    a_lora_training(taught, tmp_path).run()
    with pytest.raises(RunError, match=r"adapters \(LoRA\) of the weights bbbb.* of the weights cccc"):
        a_lora_training(taught, tmp_path, base="c" * 64).run()
    with pytest.raises(RunError, match="of all of a model's weights"):
        a_training(taught, tmp_path).run()


def test_rounded_weights_are_shared_and_the_exact_ones_merged(taught, tmp_path) -> None:
    from stillroom.training.network import LossNetwork

    model = an_adapted(dtype=torch.bfloat16)
    worker = LossNetwork(model, torch.bfloat16).worker
    same = {n for (n, a), b in zip(model.named_parameters(), worker.parameters(), strict=True) if a is b}
    assert same == {name for name, held in model.named_parameters() if not held.requires_grad}
    from tiny_models import make_tokenizer

    from stillroom.models.load import load_student, save_model

    tokenizer = make_tokenizer("bpe", 300)
    start = make_model("llama", rows=len(tokenizer), layers=1, seed=2)
    save_model(start, tokenizer, tmp_path / "start")
    rounded, _ = load_student(tmp_path / "start", torch.float32)
    adapters.attach(rounded, LORA, torch.bfloat16, 0)
    exact = copy.deepcopy(moved(rounded))
    found, _ = adapters.merged(rounded, tokenizer, LORA, tmp_path / "start")
    layer = exact.get_submodule("model.layers.0.mlp.up_proj")
    expected = start.get_submodule("model.layers.0.mlp.up_proj").weight + 2 * (
        layer.lora_B.default.weight @ layer.lora_A.default.weight
    )
    torch.testing.assert_close(found.get_submodule("model.layers.0.mlp.up_proj").weight, expected)
    assert torch.equal(found.get_input_embeddings().weight, start.get_input_embeddings().weight)


def test_targets_are_linear_layers_by_the_end_of_their_names() -> None:
    model = make_model("llama", rows=ROWS, layers=2)
    auto = adapters.targets_of(model, LORA)
    assert len(auto) == 14
    assert "lm_head" not in auto
    some = adapters.targets_of(model, LoraConfig(targets=("q_proj", "layers.1.mlp.up_proj")))
    assert set(some) == {
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    }
    counted = adapters.adapter_parameters(model, LORA)
    adapters.attach(model, LORA, torch.float32, 0)
    assert counted == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapters.record(model, LORA)["matrices_without"] == []
    assert LoraConfig(targets="q_proj").targets == ("q_proj",)
    for names in ([], [""], "", ["q_proj", " "]):
        with pytest.raises(ValueError, match="an empty name stands for no layer"):
            LoraConfig(targets=names)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("w_pack", "this model has no layer `w_pack`"),
        ("proj", "this model has no layer `proj`"),
        ("lm_head", "`lm_head` is the output layer"),
        ("embed_tokens", "no linear layer of this model, but a Embedding"),
        ("mlp", "no linear layer of this model, but a LlamaMLP"),
    ],
)
def test_what_cannot_be_a_target_is_refused_by_name(target: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as error:
        adapters.targets_of(make_model("llama", rows=ROWS, layers=1), LoraConfig(targets=("q_proj", target)))
    assert "q_proj" in error.value.todo


def test_a_mixture_says_which_matrices_have_no_adapter() -> None:
    model = an_adapted(family="olmoe")
    found = adapters.record(model, LORA)
    assert any("experts" in name for name in found["matrices_without"])
    assert "without adapters: " in adapters.words_of(found)


def test_the_rate_of_adapters_grows_with_the_width_and_falls_with_what_they_count() -> None:
    assert adapters.faster(4096, LoraConfig()) == pytest.approx(13.9, rel=0.01)
    assert adapters.faster(64, LoraConfig()) == pytest.approx(1.73, rel=0.01)
    assert adapters.faster(64, LoraConfig(rank=4)) == pytest.approx(0.87, rel=0.01)
    assert adapters.faster(64, LoraConfig(rslora=True)) == pytest.approx(0.43, rel=0.01)


def test_a_group_of_processes_is_refused(taught, tmp_path) -> None:
    training = a_lora_training(taught, tmp_path)
    training.group = Group(0, 2)
    with pytest.raises(UsageError, match="trains in one process, and here there are 2"):
        training.run()


def test_recipes_that_cannot_be_are_refused() -> None:
    settings: dict[str, Any] = {
        "name": "lora",
        "corpus": {"sources": [{"kind": "text", "path": "text", "licence": "PSF-2.0"}]},
        "teacher": {"kind": "huggingface", "name": "owner/model"},
        "distill": {"lora": {}},
    }
    assert Recipe.model_validate(settings).distill.lora == LoraConfig()
    with pytest.raises(ValueError, match=r"`student: \{kind: fresh\}` are random"):
        Recipe.model_validate(settings | {"student": {"kind": "fresh", "config": {"num_hidden_layers": 1}}})
    with pytest.raises(ValueError, match="leave it at `auto`"):
        DistillConfig(lora=LoraConfig(), state=8)
    for wrong in ({"rank": 0}, {"alpha": 0}, {"dropout": 1}, {"targets": []}, {"r": 8}):
        with pytest.raises(ValueError):
            LoraConfig(**wrong)


def test_a_model_without_linear_layers_is_refused() -> None:
    model: Any = make_model("llama", rows=ROWS, layers=1)
    for layer in list(model.model.layers):
        layer.self_attn, layer.mlp = nn.Identity(), nn.Identity()
    with pytest.raises(UnsupportedModel, match="no linear layers"):
        adapters.targets_of(model, LORA)
