"""The models of the zoo: how each is built, and what it is called with.

All weights are random, nothing is downloaded. torchvision, timm and transformers are imported only when one of
their models is built, so that importing this module needs none of them.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo import shim

Inputs = Callable[[int], tuple[Tensor, ...]]
Kwargs = Callable[[int], dict[str, Tensor]]

_SEED = 0
_CALIBRATION_BATCH = 16
_VOCAB = 99
# About 1 / sqrt(hidden size). The usual 0.02 suits wider models: here it leaves next to nothing of the input.
_SPREAD = 0.2
_DROPOUT = 0.1
_DROP_PATH = 0.1


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        name: The key of the entry in `ENTRIES`.
        build: Makes the model, in eval mode; two calls give equal weights.
        inputs: Makes the positional arguments of a call, given the batch size.
        kwargs: Makes the keyword arguments of a call, given the batch size.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    kwargs: Kwargs


def build(name: str) -> nn.Module:
    """Build the named model, in eval mode."""
    return ENTRIES[name].build()


def example(name: str, batch: int) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return the arguments to call the named model with: equal for equal batch sizes."""
    entry = ENTRIES[name]
    return entry.inputs(batch), entry.kwargs(batch)


def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Replace, in place, initial values that hide mistakes by random ones.

    A norm that starts as the identity, a bias that starts at zero or a layer scale that starts at 1e-6 gives the
    right output even where it is sliced wrongly or left out.
    """
    with torch.no_grad():
        for module in model.modules():
            mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
            if isinstance(mean, Tensor) and isinstance(var, Tensor):
                mean.copy_(0.1 * torch.randn(mean.shape, generator=generator))
                var.copy_(0.5 + torch.rand(var.shape, generator=generator))
            # By name, since many norms (T5LayerNorm, LlamaRMSNorm) derive from nn.Module alone.
            is_norm = "Norm" in type(module).__name__
            for key, parameter in module.named_parameters(recurse=False):
                # The weight of some norms starts at zero, to switch a branch off: it is still a factor.
                scale = is_norm and key == "weight" and parameter.dim() == 1
                if scale or (parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all())):
                    centre = 1.0 if scale or bool((parameter != 0).all()) else 0.0
                    parameter.copy_(centre + 0.1 * torch.randn(parameter.shape, generator=generator))


def calibrate(model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
    """Move, in place, the running statistics of every batch norm a call reaches to the scale of what it is given.

    Mean and variance end up a random step off the true ones. With statistics that ignore the input, each norm of a
    deep network shrinks or blows up what passes it: the output of some models then depends on biases alone, and no
    mistake before the last layers can be seen in it.
    """
    generator = torch.Generator().manual_seed(_SEED)

    def fit(module: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(module, nn.modules.batchnorm._BatchNorm)
        assert module.running_mean is not None
        assert module.running_var is not None
        values: Tensor = given[0].transpose(0, 1).flatten(1)
        var, mean = torch.var_mean(values, dim=1, correction=0)
        # One variance for all channels: dividing each by its own would blow up those that are all but silent here
        # and need not be for another input.
        var = var.mean().expand_as(var)
        step = 0.1 * torch.randn(mean.shape, generator=generator)
        module.running_mean.copy_(mean + step * var.sqrt())
        module.running_var.copy_(var * (0.5 + torch.rand(var.shape, generator=generator)))

    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    # In eval mode, so that dropout stays out of it; the hooks run before each norm reads its statistics.
    model.eval()
    hooks = [module.register_forward_pre_hook(fit) for module in norms]
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    # Some models keep tensors from a call in eval mode, and drop them on entering train mode.
    model.train()


def _prepared(construct: Callable[[], nn.Module], inputs: Inputs, kwargs: Kwargs) -> Callable[[], nn.Module]:
    def prepared() -> nn.Module:
        shim.install()
        # Forked, so that building a model leaves the caller's random stream where it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            model = construct()
        randomise(model, torch.Generator().manual_seed(_SEED))
        calibrate(model, inputs(_CALIBRATION_BATCH), kwargs(_CALIBRATION_BATCH))
        return model.eval()

    return prepared


def _generator(batch: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 + batch)


def _pixels(batch: int, size: int) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=_generator(batch))


def _tokens(batch: int, length: int, generator: torch.Generator) -> Tensor:
    # From 3 on: the ids below are the padding, start and end tokens of one model or another.
    return torch.randint(3, _VOCAB, (batch, length), generator=generator)


def _text(batch: int, length: int = 10) -> dict[str, Tensor]:
    generator = _generator(batch)
    ids = _tokens(batch, length, generator)
    mask = torch.ones(batch, length, dtype=torch.long)
    # The first row is full, the others end in padding, else the mask would mask nothing.
    for row in range(1, batch):
        mask[row, length - 1 - row % (length // 2) :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _source_and_target(batch: int, length: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2000 + batch)
    return {**_text(batch), "decoder_input_ids": _tokens(batch, length, generator)}


def _image(size: int) -> Inputs:
    return lambda batch: (_pixels(batch, size),)


def _nothing(batch: int) -> tuple[Tensor, ...]:
    return ()


def _no_kwargs(batch: int) -> dict[str, Tensor]:
    return {}


def _entry(name: str, construct: Callable[[], nn.Module], inputs: Inputs, kwargs: Kwargs) -> Entry:
    return Entry(name, _prepared(construct, inputs, kwargs), inputs, kwargs)


def _torchvision(name: str, size: int, **options: Any) -> Entry:
    def construct() -> nn.Module:
        from torchvision import models

        model: nn.Module = models.get_model(name, weights=None, **options)
        return model

    return _entry(name, construct, _image(size), _no_kwargs)


def _timm(name: str, size: int, **options: Any) -> Entry:
    def construct() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, drop_path_rate=_DROP_PATH, **options)

    return _entry(name, construct, _image(size), _no_kwargs)


def _transformers(name: str, construct: Callable[[], nn.Module], kwargs: Kwargs) -> Entry:
    return _entry(name, construct, _nothing, kwargs)


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=_VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=_SPREAD,
        use_cache=False,
    )
    config.num_labels = 3
    return BertForSequenceClassification(config)


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=_VOCAB,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=32,
        initializer_range=_SPREAD,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=_VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=_SPREAD,
        attention_dropout=_DROPOUT,  # its default is zero
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def _t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=_VOCAB,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        use_cache=False,
    )
    return T5ForConditionalGeneration(config)


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        initializer_range=_SPREAD,
        hidden_dropout_prob=_DROPOUT,  # the default of both is zero
        attention_probs_dropout_prob=_DROPOUT,
    )
    config.num_labels = 3
    return ViTForImageClassification(config)


# Sizes are the smallest that leave the last stage more than one position: with a single one the softmax of an
# attention is constant, and batch norm in train mode sees one value per sample.
ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in itertools.chain(
        (
            _torchvision("resnet50", 64),
            _torchvision("mobilenet_v3_small", 64),
            _torchvision("shufflenet_v2_x1_0", 64),
            _torchvision("vit_b_32", 64, image_size=64),
            _torchvision("swin_t", 64),
            _torchvision("googlenet", 64, init_weights=False),
        ),
        (
            _timm("convnext_atto", 64),
            _timm("vit_tiny_patch16_224", 64, img_size=64),
            # Its attention biases are made for the 7 x 7 positions that 224 pixels give.
            _timm("efficientformer_l1", 224),
            _timm("levit_128", 96, img_size=96),
            _timm("mvitv2_tiny", 64, img_size=64),
        ),
        (
            _transformers("bert", _bert, _text),
            _transformers("gpt2", _gpt2, _text),
            _transformers("llama", _llama, _text),
            _transformers("t5", _t5, _source_and_target),
            _transformers("vit", _vit, lambda batch: {"pixel_values": _pixels(batch, 32)}),
        ),
    )
}
