"""The models of transformers: about a hundred architectures, each from a tiny configuration."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from torch import nn

from tests.zoo.catalogue_transformers_media import AUDIO, MULTIMODAL, VISION
from tests.zoo.catalogue_transformers_sizes import LABELS, Keywords, Options
from tests.zoo.catalogue_transformers_text import DECODERS, ENCODERS, SEQUENCE_TO_SEQUENCE, STATE_SPACES
from tests.zoo.recipe import Recipe


def recipes() -> Iterator[Recipe]:
    """Yield the recipes, by kind and name."""
    kinds = (ENCODERS, DECODERS, STATE_SPACES, SEQUENCE_TO_SEQUENCE, VISION, AUDIO, MULTIMODAL)
    for name, of_class, inputs, options in itertools.chain(*kinds):
        yield _recipe(name, of_class, inputs, options)


def _recipe(name: str, of_class: str, inputs: Callable[[], Keywords], options: Options) -> Recipe:
    def construct() -> nn.Module:
        import transformers

        model_class = getattr(transformers, of_class)
        # Its own warnings of special tokens outside a vocabulary this small say nothing here.
        transformers.logging.set_verbosity_error()
        config = model_class.config_class(**options)
        config.num_labels = LABELS
        model: nn.Module = model_class(config)
        return model

    return Recipe("transformers", name, construct, lambda: ((), dict(inputs())))
