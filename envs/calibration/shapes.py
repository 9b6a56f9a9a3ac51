"""Architectures of the models that measurements name, from the models' public ``config.json``."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from ccr.errors import ConfigError, UnknownModelError
from ccr.shapes import LLAMA_2_7B, LLAMA_3_8B, MISTRAL_7B, QWEN_25_7B, YI_15_6B
from ccr.timing import ModelSpec
from envs.catalogue import catalogue

Shapes = Mapping[str, ModelSpec]

# hidden 4096, 32 layers, 32 KV heads of 128, MLP 11008; vocabulary 64,000 and 151,936 (Qwen with biases on q, k, v).
BAICHUAN_7B = ModelSpec("Baichuan-7B fp16", 7_000_559_616, 64_000 * 4096, 32, 4096, 2, 512 * 1024)
QWEN_7B = ModelSpec("Qwen-7B fp16", 7_721_324_544, 151_936 * 4096, 32, 4096, 2, 512 * 1024)
# hidden 4096, 32 layers, 32 KV heads of 128, MLP 16384, vocabulary 50,272, 2,050 learned positions, tied head.
OPT_6_7B = ModelSpec("OPT-6.7B fp16", 6_658_473_984, 50_272 * 4096, 32, 4096, 2, 512 * 1024, tied=True)

# The left side is how profiles and load measurements spell it. The artifact's scripts name Qwen-7B, Qwen-7B-Chat,
# Llama-2-7b-hf and Yi-1.5-6B-Chat. It does not say what `qwen_7b_chat_v2` is: its cost of context is that of 512 KiB
# per token, so it is read as Qwen-7B-Chat again (Qwen1.5-7B-Chat has the same shape; Qwen2-7B has not).
_PUBLISHED: Shapes = MappingProxyType(
    {
        "baichuan_7b": BAICHUAN_7B,
        "llama_7b": LLAMA_2_7B,
        "llama2_7b": LLAMA_2_7B,
        "qwen_7b": QWEN_7B,
        "qwen_7b_chat": QWEN_7B,
        "qwen_7b_chat_v2": QWEN_7B,
        "yi1_5_6b_chat": YI_15_6B,
        "mistral_7b": MISTRAL_7B,
        "llama3_8b": LLAMA_3_8B,
        "qwen2_5_7b": QWEN_25_7B,
        "facebook/opt-6.7b": OPT_6_7B,
        "meta-llama/Llama-3.1-8B-Instruct": LLAMA_3_8B,
    }
)

_REQUIRED = ("parameters", "embedding_parameters", "layers", "hidden", "weight_bytes", "kv_bytes_per_token")


def known_shapes(path: Path | None = None) -> dict[str, ModelSpec]:
    """``{name: shape}`` of published models, the catalogue, and the operator's own file, which wins.

    Args:
        path: YAML, a mapping of model name to the fields of :class:`ccr.timing.ModelSpec`.

    Raises:
        ConfigError: naming the file, the model and the field.
    """
    return {**_PUBLISHED, **catalogue(), **(_read(path) if path else {})}


def shape_of(shapes: Shapes, *names: str) -> tuple[str, ModelSpec]:
    """The first of ``names`` that is known, with its shape.

    Raises:
        UnknownModelError: none is.
    """
    for name in names:
        if name in shapes:
            return name, shapes[name]
    raise UnknownModelError(
        names[0], f"no shape for it; write one into a file for --shapes (fields: {', '.join(_REQUIRED)})"
    )


def _read(path: Path) -> dict[str, ModelSpec]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} is not YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path.name}: expected a mapping of model name to shape")
    return {str(name): _shape(f"{path.name}: {name}", str(name), given) for name, given in document.items()}


def _shape(where: str, name: str, given: Any) -> ModelSpec:
    if not isinstance(given, dict):
        raise ConfigError(f"{where}: expected the fields {', '.join(_REQUIRED)}")
    if unknown := sorted(set(map(str, given)) - {field.name for field in fields(ModelSpec)}):
        raise ConfigError(f"{where}: unknown {', '.join(unknown)}")
    for field in _REQUIRED:
        value = given.get(field)
        if not isinstance(value, int) or value <= 0:
            raise ConfigError(f"{where}: {field} is {value!r}; give a whole number above 0")
    return ModelSpec(**{"architecture": name, **given})
