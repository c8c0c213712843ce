"""LoRA and QLoRA against the chain rule, against peft's own loading, and against the same weights unquantized."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration
from transformers.pytorch_utils import Conv1D

from lpsel import errors
from lpsel.errors import UserError
from lpsel.model.adapter import Adapter
from lpsel.model.load import load_model
from lpsel.model.loss import PerSampleLoss, check_head
from lpsel.model.spec import ModelSpec, Recipe

CPU = torch.device("cpu")
NF4_GAP = 0.1520  # half of the widest gap between NF4's values, that from -1 to -0.6962
TOKENIZER = SimpleNamespace(save_pretrained=lambda folder: Path(folder, "tokenizer.json").write_text("{}"))


def spec(path, **recipe):
    return ModelSpec("small", path=path, max_length=64, recipe=Recipe(**recipe))


def load(path, precision="32-true", **settings):
    return Adapter(**settings).load(spec(path), path, precision, CPU)


def losses(model, batch):
    with torch.no_grad():
        return PerSampleLoss(model)(batch)


def train_a_little(adapted, batch, steps=3):
    trained = [p for p in adapted.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-2, weight_decay=0.0)
    loss = PerSampleLoss(adapted.model)
    for _ in range(steps):
        (loss(batch, summed=True) / len(batch.labels_N)).backward()
        optimizer.step()
        optimizer.zero_grad()


def weights_in(folder):
    with safe_open(Path(folder) / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("quantization", [None, "nf4"], ids=["lora", "qlora"])
@pytest.mark.parametrize(
    ("kind", "per_layer", "once"),
    [
        # inputs + outputs: q and o 32 + 32, k and v 32 + 16 (2 of 4 heads), gate and up 32 + 48, down 48 + 32
        ("llama", 2 * 64 + 2 * 48 + 3 * 80, 0),
        ("tied", 2 * 64 + 2 * 48 + 3 * 80, 0),
        # q, k, v and out 32 + 32, fc1 and fc2 32 + 48; project_in and project_out between 16 and 32
        ("opt-350m-like", 4 * 64 + 2 * 80, 2 * 48),
        # c_attn 32 + 96, attention's c_proj 32 + 32, c_fc 32 + 128, the other c_proj 128 + 32
        ("gpt2", 128 + 64 + 160 + 160, 0),
    ],
)
def test_only_the_adapter_trains_in_every_linear_layer_of_the_decoder(
    make_folder, kind, per_layer, once, quantization, batch
):
    adapted = load(make_folder(kind), rank=3, quantization=quantization)
    trained = {name: p for name, p in adapted.model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == adapted.trainable_parameters == 3 * (2 * per_layer + once)
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    loss = PerSampleLoss(adapted.model)
    check_head(loss)
    loss(batch, summed=True).backward()
    assert {name for name, p in adapted.model.named_parameters() if p.grad is not None} == set(trained)


def test_a_new_adapter_changes_nothing(make_folder, batch):
    path = make_folder()
    before = losses(load_model(spec(path), path, torch.float32), batch)
    torch.testing.assert_close(losses(load(path).model, batch), before, rtol=0, atol=0)


def test_the_recipes_seed_initializes_the_adapter(make_folder):
    path = make_folder()

    def first_matrix(seed):
        torch.manual_seed(99)
        model = Adapter().load(spec(path, seed=seed), path, "32-true", CPU).model
        return model.model.layers[0].self_attn.q_proj.lora_A["default"].weight

    assert torch.equal(first_matrix(1), first_matrix(1))
    assert not torch.equal(first_matrix(1), first_matrix(2))


def test_gradient_is_that_of_the_full_weight_through_the_other_matrix(make_folder, batch):
    """W' = W + alpha/r B A, so dL/dB = alpha/r dL/dW A^T; and dL/dA = 0 as long as B is 0."""
    path = make_folder()
    whole = load_model(spec(path), path, torch.float32)
    (PerSampleLoss(whole)(batch, summed=True) / len(batch.labels_N)).backward()
    adapted = load(path, rank=4, alpha=6)
    (PerSampleLoss(adapted.model)(batch, summed=True) / len(batch.labels_N)).backward()
    for name in ("self_attn.k_proj", "mlp.down_proj"):
        layer = adapted.model.model.layers[0].get_submodule(name)
        gradient = whole.model.layers[0].get_submodule(name).weight.grad
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        torch.testing.assert_close(b.grad, 1.5 * gradient @ a.T, rtol=1e-4, atol=1e-7)
        assert not a.grad.any()


def test_only_named_layers_get_an_adapter(make_folder):
    adapted = load(make_folder(), rank=2, target_modules=["q_proj", "down_proj"])
    assert adapted.trainable_parameters == 2 * 2 * (64 + 80)


@pytest.mark.parametrize("kind", ["llama", "tied", "opt-350m-like", "gpt2"])
def test_a_merged_model_has_the_same_losses_under_the_original_names(make_folder, kind, batch, tmp_path):
    path = make_folder(kind)
    adapted = load(path, rank=4)
    untrained = losses(adapted.model, batch)
    train_a_little(adapted, batch)
    trained = losses(adapted.model, batch)
    assert (trained - untrained).abs().max() > 0.1
    adapted.save(TOKENIZER, tmp_path / "run", "model")

    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["adapter", "model"]
    for folder, settings in (("adapter", "adapter_config.json"), ("model", "config.json")):
        files = (tmp_path / "run" / folder).glob("*.safetensors")
        mode = (tmp_path / "run" / folder / settings).stat().st_mode
        assert [file.stat().st_mode for file in files] == [mode], "weights can be read by whoever can read the rest"
    before, after = weights_in(path), weights_in(tmp_path / "run" / "model")
    assert {n: (w.shape, w.dtype) for n, w in after.items()} == {n: (w.shape, w.dtype) for n, w in before.items()}
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").eval()
    torch.testing.assert_close(losses(merged, batch), trained, rtol=0, atol=1e-5)

    base = AutoModelForCausalLM.from_pretrained(path).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
    torch.testing.assert_close(losses(again.get_base_model(), batch), trained, rtol=0, atol=1e-5)
    settings = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (4, 32, 0)
    assert settings["base_model_name_or_path"] == path


def test_without_merging_only_the_adapter_is_saved(make_folder, tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)  # of an earlier run
    load(make_folder(), merge=False).save(TOKENIZER, tmp_path / "run", "model")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["adapter"]


def unquantized(model, path):
    """The model with its 4-bit weights dequantized to float32."""
    plain = load_model(spec(path), path, torch.float32)
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
            target = plain.get_submodule(name.removesuffix(".base_layer"))
            target.weight.data = weight.T.contiguous() if isinstance(target, Conv1D) else weight
    return plain


@pytest.mark.parametrize("kind", ["llama", "opt-350m-like", "gpt2"])
def test_four_bit_losses_and_gradients_are_those_of_the_dequantized_weights(make_folder, kind, batch, tmp_path):
    path = make_folder(kind)
    adapted = load(path, rank=4, quantization="nf4")
    train_a_little(adapted, batch)
    plain = unquantized(adapted.model, path)
    plain.save_pretrained(tmp_path / "plain")
    adapted.wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = PeftModel.from_pretrained(plain, tmp_path / "adapter", is_trainable=True).eval().get_base_model()

    # A pass without gradients first: it must leave the weights as the backward pass needs them.
    torch.testing.assert_close(losses(adapted.model, batch), losses(reference, batch), rtol=0, atol=1e-4)
    for model in (adapted.model, reference):
        (PerSampleLoss(model)(batch, summed=True) / len(batch.labels_N)).backward()
    expected = {name: p.grad for name, p in reference.named_parameters() if p.requires_grad}
    ours = {name: p.grad for name, p in adapted.model.named_parameters() if p.requires_grad}
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


def test_four_bit_adapter_is_merged_into_the_models_own_weights(make_folder, batch, tmp_path):
    path = make_folder("tied")
    adapted = load(path, rank=4, quantization="nf4")
    train_a_little(adapted, batch)
    adapted.save(TOKENIZER, tmp_path, "model")
    before, after = weights_in(path), weights_in(tmp_path / "model")
    assert after.keys() == before.keys()
    layer = adapted.model.model.layers[1].mlp.up_proj
    change = 32 / 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    name = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(after[name] - before[name], change.detach(), rtol=0, atol=1e-6)
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


@pytest.mark.parametrize("width", [24, 40, 56])
def test_four_bits_support_widths_that_do_not_fill_a_block_of_64(make_folder, width):
    path = make_folder(hidden_size=width, intermediate_size=width + 13, head_dim=width // 4)
    model = load(path, quantization="nf4").model
    weights = weights_in(path)
    for layer in ("self_attn.q_proj", "mlp.down_proj", "mlp.gate_proj"):
        four_bit = model.model.layers[0].get_submodule(layer).base_layer
        ours = dequantize_4bit(four_bit.weight.data, four_bit.weight.quant_state)
        weight = weights[f"model.layers.0.{layer}.weight"]
        assert ours.shape == weight.shape
        blocks = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
        # The largest of every 64 weights sets their scale, which is itself stored in 8 bits.
        bound = (NF4_GAP + 0.02) * blocks.abs().amax(1).repeat_interleave(64)[: weight.numel()].view_as(weight)
        assert ((ours - weight).abs() <= bound).all()


@pytest.mark.parametrize(("precision", "adapter"), [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16)])
def test_weights_in_bfloat16_carry_an_adapter_in_the_dtype_that_is_trained(make_folder, precision, adapter):
    model = load(make_folder(), precision).model
    assert {p.requires_grad: p.dtype for p in model.parameters()} == {True: adapter, False: torch.bfloat16}


def test_a_model_with_weights_in_bfloat16_computes_the_losses_of_its_own_head(make_folder):
    model = load(make_folder(), "bf16-mixed").model
    check_head(PerSampleLoss(model))
    four_bit = load(make_folder(), "bf16-mixed", quantization="nf4").model.model.layers[0].mlp.up_proj.base_layer
    assert (four_bit.weight.dtype, four_bit.compute_dtype) == (torch.uint8, torch.bfloat16)


def test_only_the_text_decoder_of_a_multimodal_model_is_adapted(tmp_path):
    text = dict(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    vision = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=96)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "seeing")
    adapted = load(str(tmp_path / "seeing"), rank=2)
    assert adapted.trainable_parameters == 2 * (2 * 64 + 2 * 48 + 3 * 80)
    trained = [name for name, p in adapted.model.named_parameters() if p.requires_grad]
    assert all("language_model" in name and "vision" not in name for name in trained)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank", 0),
        ("rank", 2.5),
        ("alpha", 0),
        ("alpha", "big"),
        ("target_modules", "q_proj"),
        ("quantization", "int8"),
        ("merge", "later"),
    ],
)
def test_an_invalid_setting_is_named_with_its_value(name, value):
    with pytest.raises(UserError) as caught:
        Adapter(**{name: value})
    assert (caught.value.name, caught.value.value) == (f"adapter.{name}", value)


def test_an_unknown_layer_name_lists_the_known_ones(make_folder):
    with pytest.raises(UserError) as caught:
        load(make_folder(), target_modules=["q_proj", "query"])
    assert (caught.value.name, caught.value.value) == ("adapter.target_modules", "query")
    assert caught.value.hint == "choose from down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"


def test_a_quantized_model_is_rejected(make_folder):
    path = make_folder()
    config = json.loads(Path(path, "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    Path(path, "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"adapter=qlora: .* is already quantized"):
        load(path, quantization="nf4")


@pytest.mark.parametrize(
    ("quantization", "missing", "extra"),
    [(None, "peft", "lora"), ("nf4", "peft", "quantized"), ("nf4", "bitsandbytes", "quantized")],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, quantization, missing, extra):
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(UserError, match=f"needs the package {missing}") as caught:
        Adapter(quantization=quantization).check("auto")
    assert caught.value.hint == f"run pip install 'lpsel[{extra}]'"


def test_sharded_weights_do_not_support_an_adapter():
    with pytest.raises(UserError) as caught:
        Adapter(quantization="nf4").check({"_target_": "lightning.pytorch.strategies.ModelParallelStrategy"})
    assert (caught.value.name, caught.value.value) == ("adapter", "qlora")
    assert caught.value.hint == "set trainer=ddp, or adapter=none"
    Adapter().check("ddp")
    Adapter().check({"_target_": "lightning.pytorch.strategies.DDPStrategy"})
