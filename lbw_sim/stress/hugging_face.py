"""Published language models through transformers, peft and datasets, as their users would load and train them.

Nothing is imported or downloaded before a session asks for it. Where nothing can be downloaded, the same code runs on
random weights and a text file, and the session's facts say so. It is not the Trainer: the loop is the suite's own.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lbw_sim.errors import StressError
from lbw_sim.stress.corpus import VALIDATION_SHARE, corpus
from lbw_sim.stress.faults import Fault
from lbw_sim.stress.text import CANARY_SEED
from lbw_sim.stress.workload import Setting
from lbw_sim.trace.provenance import Provenance

Tokens = npt.NDArray[np.int32]
"""A hundred million of them are kept from run to run."""

WIKITEXT = ("Salesforce/wikitext", "wikitext-103-raw-v1")

LORA_RANK, LORA_ALPHA = 16, 32
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""LoRA (Hu et al., arXiv 2106.09685) of every linear layer of a block, without dropout and biases. The seed paper does
not state its own."""

_BATCH = 31
"""First number of the key of a batch's random draw."""


class Shape(NamedTuple):
    """What a decoder of the Llama family is built from; names as in its `config.json`."""

    family: Literal["qwen2", "llama"]
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool

    @property
    def layer_shapes(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear layer of a block."""
        width, wide = self.hidden_size, self.intermediate_size
        key_width = self.num_key_value_heads * (width // self.num_attention_heads)
        return {
            "q_proj": (width, width),
            "k_proj": (width, key_width),
            "v_proj": (width, key_width),
            "o_proj": (width, width),
            "gate_proj": (width, wide),
            "up_proj": (width, wide),
            "down_proj": (wide, width),
        }

    @property
    def parameters(self) -> int:
        """Weights of the whole model."""
        shapes = self.layer_shapes
        # Qwen2 has biases on queries, keys and values
        biases = sum(shapes[name][1] for name in ("q_proj", "k_proj", "v_proj")) if self.family == "qwen2" else 0
        block = sum(inputs * outputs for inputs, outputs in shapes.values()) + biases + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * block + embeddings + self.hidden_size

    @property
    def lora_parameters(self) -> int:
        """Weights that LoRA adds and trains."""
        sides = sum(inputs + outputs for name, (inputs, outputs) in self.layer_shapes.items() if name in LORA_TARGETS)
        return self.num_hidden_layers * LORA_RANK * sides

    def config(self) -> Any:
        """The configuration as transformers knows it. Raises StressError without transformers."""
        transformers = _library("transformers")
        kind = transformers.Qwen2Config if self.family == "qwen2" else transformers.LlamaConfig
        facts = self._asdict()
        del facts["family"]
        theta = facts.pop("rope_theta")
        config = kind(**facts)
        # since transformers 5 the base of the rotary embedding is one of several rope parameters
        if isinstance(getattr(config, "rope_parameters", None), dict):
            config.rope_parameters["rope_theta"] = theta
        else:
            config.rope_theta = theta
        return config


class LanguageModel(NamedTuple):
    """One model, and how it is trained."""

    repository: str
    """On the Hugging Face hub, or a folder; empty: there are no weights, only a shape."""
    shape: Shape
    lora: bool
    """Train adapters on weights in bfloat16; otherwise all weights, in float32 with bfloat16 arithmetic on a GPU."""
    batch: int
    context: int
    checkpointing: bool = False
    """Compute activations again in the backward pass rather than keep them."""

    @property
    def trained_parameters(self) -> int:
        """Weights that are trained."""
        return self.shape.lora_parameters if self.lora else self.shape.parameters

    @property
    def memory_bytes(self) -> int:
        """On a GPU, about: weights, gradient and moments of the trained ones, activations, and logits three times over
        (bfloat16, float32, gradient)."""
        shape, tokens = self.shape, self.batch * self.context
        weights = shape.parameters * (2 if self.lora else 4) + (4 * shape.lora_parameters if self.lora else 0)
        optimizer = 12 * self.trained_parameters
        # per token and block in bfloat16: normed inputs, projections, attention's output, and the three of the MLP
        per_block = 2 * (8 * shape.hidden_size + 4 * shape.intermediate_size)
        blocks = 1 if self.checkpointing else shape.num_hidden_layers
        kept = 2 * shape.hidden_size * shape.num_hidden_layers if self.checkpointing else 0
        return weights + optimizer + tokens * (blocks * per_block + kept + 10 * shape.vocab_size)


class _Text(NamedTuple):
    train: Tokens
    validation: Tokens
    unit: str
    facts: Provenance


class HuggingFaceSession:
    """A causal language model and its text."""

    def __init__(self, wanted: LanguageModel, setting: Setting) -> None:
        """Load or build. Raises StressError for what cannot be had, and says what would help."""
        self._wanted, self._seed, self._device = wanted, setting.seed, setting.device
        random = setting.random_weights or not wanted.repository
        text = _text(wanted, setting)
        for name in ("train", "validation"):
            if len(getattr(text, name)) <= wanted.context:
                raise StressError(
                    f"the text's {name} part has {len(getattr(text, name))} {text.unit}s; a window has {wanted.context}"
                )
        self._text = text
        self.unit = text.unit
        self.tokens_per_step = wanted.batch * wanted.context
        self.model: nn.Module = _model(wanted, setting, random)
        self.facts: Provenance = {
            **text.facts,
            "weights": "random" if random else wanted.repository,
            "lora": f"rank {LORA_RANK}, alpha {LORA_ALPHA}, on {', '.join(LORA_TARGETS)}" if wanted.lora else None,
            "context": wanted.context,
            "batch": wanted.batch,
        }

    def batch(self, step: int, fault: Fault | None = None) -> Tensor:
        """Windows of the training text at random places, [batch, context] of int64."""
        if fault is not None and (fault.corpus is not None or fault.random_labels):
            raise StressError(f"fault {fault.name!r} changes text or labels, which this workload cannot")
        if fault is not None and fault.repeats_batch and fault.active(step):
            step = fault.onset_step
        return self._draw(self._seed, step)

    def canary_batch(self) -> Tensor:
        """The first batch that another seed would draw."""
        return self._draw(CANARY_SEED + self._seed, 0)

    def loss(self, batch: Tensor) -> Tensor:
        """Mean over the tokens of a window but its first; nats per token."""
        with self._arithmetic():
            loss: Tensor = self.model(input_ids=batch, labels=batch).loss
        return loss

    def validation_loss(self) -> float:
        """Mean over the whole validation part, cut into windows one after the other; what is left at its end is not
        enough for a window and is left out."""
        context, batch = self._wanted.context, self._wanted.batch
        count = len(self._text.validation) // context
        windows = torch.from_numpy(self._text.validation[: count * context].reshape(count, context))
        total = 0.0
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                for start in range(0, count, batch):
                    part = windows[start : start + batch].to(self._device).long()
                    total += float(self.loss(part)) * len(part)
        finally:
            self.model.train(training)
        return total / count

    def _draw(self, seed: int, step: int) -> Tensor:
        wanted, tokens = self._wanted, self._text.train
        starts = np.random.default_rng((_BATCH, seed, step)).random(wanted.batch) * (len(tokens) - wanted.context + 1)
        windows = tokens[starts.astype(np.int64)[:, None] + np.arange(wanted.context)]
        return torch.from_numpy(windows).to(self._device).long()

    def _arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        if self._device.startswith("cuda") and not self._wanted.lora:
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return contextlib.nullcontext()


def _model(wanted: LanguageModel, setting: Setting, random: bool) -> nn.Module:
    transformers = _library("transformers")
    number = _number(wanted, setting.device)
    with _seeded(setting.seed, setting.device):
        if random:
            with torch.device(setting.device), _default_dtype(number):
                model = transformers.AutoModelForCausalLM.from_config(wanted.shape.config())
        else:
            try:
                model = transformers.AutoModelForCausalLM.from_pretrained(
                    wanted.repository, **{_dtype_name(transformers.__version__): number}
                )
            except (OSError, ValueError) as error:
                raise StressError(
                    f"the weights of {wanted.repository} cannot be had: {_first_line(error)}. Where nothing can be "
                    f"downloaded, take random weights (--random-weights) and a text (--data FILE)"
                ) from error
        model.config.use_cache = False
        if wanted.checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if wanted.lora:
            peft = _library("peft")
            if wanted.checkpointing:
                model.enable_input_require_grads()
            model = peft.get_peft_model(
                model,
                peft.LoraConfig(
                    r=LORA_RANK,
                    lora_alpha=LORA_ALPHA,
                    lora_dropout=0.0,
                    target_modules=list(LORA_TARGETS),
                    task_type="CAUSAL_LM",
                ),
            )
    # from_pretrained gives a model in evaluation mode
    module: nn.Module = model.to(setting.device).train()
    return module


def _number(wanted: LanguageModel, device: str) -> torch.dtype:
    """What the weights are kept in. A CPU computes in bfloat16 so slowly that nobody would want it."""
    return torch.bfloat16 if wanted.lora and device.startswith("cuda") else torch.float32


def _dtype_name(version: str) -> str:
    """transformers renamed the argument in 4.56."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


def _text(wanted: LanguageModel, setting: Setting) -> _Text:
    """The text as token ids: a file or what Python ships, or WikiText-103."""
    if setting.data is None and wanted.repository:
        return _wikitext(wanted.repository, WIKITEXT)
    if setting.data is None:
        prose = corpus("prose")
        return _Text(
            prose.train.astype(np.int32),
            prose.validation.astype(np.int32),
            "byte",
            {"text": prose.name, "text_digest": prose.digest, "tokenizer": "bytes"},
        )
    try:
        text = setting.data.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StressError(f"{setting.data} cannot be read as a text in UTF-8: {error}") from None
    tokenizer = _tokenizer(wanted.repository)
    if tokenizer is None:
        ids = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)
    else:
        ids = np.array(tokenizer(text)["input_ids"], dtype=np.int32)
    cut = int(len(ids) * (1.0 - VALIDATION_SHARE))
    facts: Provenance = {"text": setting.data.name, "tokenizer": "bytes" if tokenizer is None else wanted.repository}
    return _Text(ids[:cut], ids[cut:], "byte" if tokenizer is None else "token", facts)


@lru_cache(maxsize=1)
def _tokenizer(repository: str) -> Any | None:
    """The model's own; None where it cannot be had, which its hub's client takes a while to find out."""
    if not repository:
        return None
    try:
        return _library("transformers").AutoTokenizer.from_pretrained(repository)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=1)
def _wikitext(repository: str, source: tuple[str, ...]) -> _Text:
    """WikiText-103 raw: the whole training split for training, the whole validation split for validation."""
    tokenizer = _tokenizer(repository)
    try:
        splits = _library("datasets").load_dataset(*source)
    except Exception as error:
        # datasets raises half a dozen kinds when it cannot reach its hub
        raise StressError(
            f"WikiText-103 cannot be had: {_first_line(error)}. Where nothing can be downloaded, name a text of your "
            f"own (--data FILE)"
        ) from error
    if tokenizer is None:
        raise StressError(f"the tokenizer of {repository} cannot be had; a text of your own (--data FILE) needs none")
    found = {name: _tokens(splits[name], tokenizer) for name in ("train", "validation")}
    facts: Provenance = {"text": "/".join(source), "tokenizer": repository}
    return _Text(found["train"], found["validation"], "token", facts)


def _tokens(split: Any, tokenizer: Any) -> Tokens:
    """A split of rows with `text` as one row of ids; what `map` computes stays in the cache of datasets."""
    mapped = split.map(lambda rows: {"input_ids": tokenizer(rows["text"])["input_ids"]}, batched=True)
    column = mapped.data.column("input_ids").combine_chunks()
    return np.asarray(column.flatten(), dtype=np.int32)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise StressError(f"this workload needs {name}: pip install 'lbw-sim[hf]'") from None


@contextlib.contextmanager
def _seeded(seed: int, device: str) -> Iterator[None]:
    """Everything that libraries draw inside comes from the seed; afterwards the generators are as they were."""
    devices = [torch.device(device).index or 0] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
