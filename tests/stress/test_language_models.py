"""Published language models in little: the same classes, loading, adapters and text, with nothing downloaded."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import pytest
import torch

from lbw_sim.errors import StressError
from lbw_sim.stress import hugging_face
from lbw_sim.stress.corpus import corpus
from lbw_sim.stress.flown import fly
from lbw_sim.stress.hugging_face import HuggingFaceSession
from lbw_sim.stress.plan import FlightPlan
from lbw_sim.stress.workload import Setting
from lbw_sim.stress.workloads import workload
from lbw_sim.stress.workloads.language_models import MODELS

needs_libraries = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("transformers", "peft", "datasets")),
    reason="needs transformers, peft and datasets",
)
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!lbw_sim)"),
]


def test_parameters_are_those_that_the_models_cards_state() -> None:
    stated = {
        "qwen2.5-3b": 3_085_938_688,
        "qwen2.5-7b": 7_615_616_512,
        "qwen2.5-14b": 14_770_033_664,
        "tinyllama-1.1b": 1_100_048_384,
    }
    assert {name: MODELS[name].shape.parameters for name in stated} == stated
    # what one H100 has, in bytes; float32 weights, gradient and moments of TinyLlama are 16 bytes each
    assert all(workload(name).memory_bytes < 75 * 2**30 for name in stated)
    assert workload("tinyllama-1.1b").memory_bytes > 16 * 1_100_048_384
    assert workload("qwen2.5-7b").trained_parameters == 28 * 16 * (2 * 7168 + 2 * 4096 + 3 * (3584 + 18944))


@needs_libraries
def test_the_arithmetic_of_every_shape_is_that_of_the_class_which_is_built() -> None:
    from transformers import AutoModelForCausalLM

    for name, model in MODELS.items():
        with torch.device("meta"):
            built = AutoModelForCausalLM.from_config(model.shape.config())
        assert sum(parameter.numel() for parameter in built.parameters()) == model.shape.parameters, name
        assert built.config.max_position_embeddings >= model.context


@needs_libraries
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_in_float32_train_on_weights_in_bfloat16(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # as on a GPU
    monkeypatch.setattr(hugging_face, "_number", lambda wanted, device: torch.bfloat16)
    session = HuggingFaceSession(MODELS["qwen2.5-toy"]._replace(checkpointing=checkpointing), Setting(seed=0))
    kinds = {(p.requires_grad, p.dtype) for p in session.model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    optimizer = torch.optim.AdamW([p for p in session.model.parameters() if p.requires_grad], lr=1e-2)
    batch = session.batch(0)
    before = float(session.loss(batch).detach())
    for _ in range(3):
        optimizer.zero_grad()
        session.loss(batch).backward()
        optimizer.step()
    assert float(session.loss(batch).detach()) < before - 0.05


@needs_libraries
@pytest.mark.parametrize("name", ["qwen2.5-toy", "tinyllama-toy"])
def test_a_toy_of_the_architecture_trains(name: str) -> None:
    load = workload(name)
    session, again = load.session(1), load.session(1)
    sizes = [(p.numel(), p.requires_grad) for p in session.model.parameters()]
    assert sum(size for size, _ in sizes) == load.parameters
    assert sum(size for size, trained in sizes if trained) == load.trained_parameters
    pairs = zip(session.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    flown = fly(FlightPlan(workload=name, steps=15, lr=1e-2, seed=1), "paired_rollback")
    assert flown.validation_loss < session.validation_loss() - 0.02
    assert flown.facts["weights"] == "random"
    assert flown.unit == "byte"


@needs_libraries
def test_weights_tokenizer_and_text_come_from_where_the_model_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder, texts = tmp_path / "model", tmp_path / "texts"
    toy = MODELS["qwen2.5-toy"]
    toy = toy._replace(shape=toy.shape._replace(vocab_size=320))
    made = HuggingFaceSession(toy._replace(lora=False), Setting(seed=5))
    made.model.save_pretrained(folder)
    prose = bytes(corpus("prose").train[:30_000]).decode()
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(prose.splitlines(), vocab_size=300, show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=trained).save_pretrained(folder)
    texts.mkdir()
    (texts / "train.txt").write_text(prose, encoding="utf-8")
    (texts / "validation.txt").write_text(prose[:5000], encoding="utf-8")
    monkeypatch.setattr(hugging_face, "WIKITEXT", (str(texts),))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    wanted = toy._replace(repository=str(folder))
    loaded = HuggingFaceSession(wanted, Setting(seed=0))
    # LoRA begins as nothing: the loaded model is the saved one
    batch = loaded.batch(0)
    assert float(loaded.loss(batch).detach()) == pytest.approx(float(made.loss(batch).detach()), rel=1e-6)
    assert loaded.unit == "token"
    assert loaded.facts["weights"] == str(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = [tokenizer(line)["input_ids"] for line in prose.splitlines()]
    assert loaded._text.train.tolist() == list(itertools.chain(*lines)), "the whole training split, in its order"
    assert len(set(loaded._text.train.tolist())) > 50

    mine = texts / "train.txt"
    random = HuggingFaceSession(wanted, Setting(seed=0, data=mine, random_weights=True))
    assert (random.facts["weights"], random.facts["text"], random.unit) == ("random", "train.txt", "token")
    assert float(random.loss(batch).detach()) != pytest.approx(float(loaded.loss(batch).detach()), rel=1e-6)
    assert random.facts["tokenizer"] == str(folder)
    nowhere = toy._replace(repository=str(tmp_path / "nowhere"))
    bytes_of = HuggingFaceSession(nowhere, Setting(seed=0, data=mine, random_weights=True))
    assert (bytes_of.facts["tokenizer"], bytes_of.unit) == ("bytes", "byte")
    with pytest.raises(StressError, match=r"weights of .*nowhere cannot be had.*--random-weights"):
        HuggingFaceSession(nowhere, Setting(seed=0, data=mine))
    monkeypatch.setattr(hugging_face, "WIKITEXT", (str(tmp_path / "nothing"),))
    with pytest.raises(StressError, match=r"WikiText-103 cannot be had.*--data FILE"):
        HuggingFaceSession(wanted, Setting(seed=0))
