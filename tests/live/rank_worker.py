"""The ranks of the distributed tests, each a process of its own, over gloo.

Each rank writes a JSON line for each scenario into FOLDER/rank-N.jsonl, and trains on batches of its own.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lbw_sim.guard import Guard, GuardSpec
from lbw_sim.guard.analyzers.composite import Composite
from lbw_sim.guard.envelope import Envelope
from lbw_sim.guard.policies.damp_release import DampRelease
from lbw_sim.guard.policies.rewind import Rewind
from lbw_sim.guard.sensors.robust_loss import RobustLoss
from lbw_sim.live import Snapshots, attach
from lbw_sim.live.probes import GradNorm, UpdateNorm

STEPS = 48
PARTS: dict[str, Any] = {
    "sensor": RobustLoss(startup_rows=5),
    "analyzer": Composite(hold_rows=3, recovery_rows=3),
}
EAGER = GuardSpec.of(Guard(policy=DampRelease(hold_steps=4), envelope=Envelope(), **PARTS), "eager")
REWINDING = GuardSpec.of(
    Guard(policy=Rewind(rollback_steps=4), envelope=Envelope(max_rollbacks=2), **PARTS), "rewinding"
)
ACTIVE: dict[str, Any] = {"mode": "active", "unproven": True}

size, home, folder, scenarios, rank = 1, Path(), Path(), [""], -1


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    x = torch.randn(32, 4, generator=generator)
    return x, x.sum(dim=1, keepdim=True).sin() + 0.1 * torch.randn(32, 1, generator=generator)


class CopiedUpdateNorm:
    """Norm of this rank's part of the last update, from a copy; the whole parameters lie on every rank."""

    channels = ("update_norm",)

    def __init__(self, parameters: list[torch.Tensor], replicas: int) -> None:
        self.parameters, self.replicas = parameters, replicas

    def local(self) -> list[torch.Tensor]:
        return [(p.to_local() if hasattr(p, "to_local") else p).detach() for p in self.parameters]

    def before_step(self, step: int, batch: object | None) -> dict[str, float]:
        self.before = [p.clone() for p in self.local()]
        return {}

    def after_step(self, step: int) -> dict[str, float]:
        square = sum(float((a - b).double().square().sum()) for a, b in zip(self.local(), self.before, strict=True))
        return {"update_norm": math.sqrt(square / self.replicas)}


def fly(
    name: str,
    spec: GuardSpec,
    *,
    sharded: bool = False,
    fault: Callable[[int, torch.Tensor], torch.Tensor] = lambda step, loss: loss,
    at: Callable[[int, Any], object] = lambda step, live: None,
    tokens: Callable[[], float | None] = lambda: None,
    **options: Any,
) -> dict[str, Any]:
    """Train with a guard on this rank; returns what happened here."""
    net: Any = model()
    if sharded:
        for layer in (net[0], net[2]):
            fully_shard(layer, mesh=init_device_mesh("cpu", (size,)))
        fully_shard(net, mesh=init_device_mesh("cpu", (size,)))
    else:
        net = DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    probe = CopiedUpdateNorm(list(net.parameters()), 1 if sharded else size)
    decisions, losses, applied = [], [], []
    live = attach(optimizer, spec, trace=folder, run_id=name, probes=[probe], **ACTIVE, **options)
    optimizer.register_step_pre_hook(lambda o, *_: applied.append(o.param_groups[0]["lr"]))
    for step in range(STEPS):
        x, y = batch(step)
        loss = fault(step, (net(x) - y).square().mean())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1e9)
        at(step, live)
        live.observe(loss, grad_norm=norm, tokens=tokens())
        optimizer.step()
        decisions.append(list(live.decision))
        losses.append(float(loss.detach()))
    live.close()
    weights = [(p.full_tensor() if hasattr(p, "full_tensor") else p).detach() for p in net.parameters()]
    return {
        "scenario": name,
        "grounded": live.grounded,
        "decisions": decisions,
        "losses": losses,
        "applied": applied,
        "weights": [float(w.double().sum()) for w in weights],
        "recorded_here": live._recorder is not None,
    }


def spike(step: int, loss: torch.Tensor) -> torch.Tensor:
    return loss * 40.0 if 30 <= step < 36 else loss


def nan_on_the_last_rank(step: int, loss: torch.Tensor) -> torch.Tensor:
    return loss * (math.nan if step == 20 and rank == size - 1 else 1.0)


def slow_last_rank(step: int, live: Any) -> None:
    if rank == size - 1 and step % 10 == 0:
        time.sleep(0.03)


def break_here(step: int, live: Any) -> None:
    """A fault of ours, on the last rank only."""
    if step == 33 and rank == size - 1:
        live.observe("no number")


def disagree(step: int, live: Any) -> None:
    """A bit of the guard's memory flips on the last rank."""
    if step == 25 and rank == size - 1:
        live._state = live._state._replace(envelope=live._state.envelope._replace(scale=0.5))


def break_recorder(step: int, live: Any) -> None:
    if step == 33 and live._recorder is not None:
        os.close(live._recorder._journal._fd)


def die(step: int, live: Any) -> None:
    if step == 40 and rank == size - 1:
        os.kill(os.getpid(), signal.SIGKILL)


def partly_sharded_model() -> torch.nn.Sequential:
    """Of which the first layer can be sharded and the last one is a copy on every rank."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1))


def measure_norms(net: torch.nn.Module, optimizer: torch.optim.Optimizer, traces: Path) -> None:
    """Four steps on the same batches on every rank: then a plain gradient is the same without an all-reduce."""
    probes = [GradNorm(optimizer), UpdateNorm(optimizer)]
    with attach(optimizer, "default", trace=traces, run_id="norms", probes=probes) as live:
        for step in range(4):
            optimizer.zero_grad()
            x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
            loss = net(x).square().mean()
            loss.backward()
            live.observe(loss)
            optimizer.step()


def norms() -> dict[str, Any]:
    net = partly_sharded_model()
    fully_shard(net[0], mesh=init_device_mesh("cpu", (size,)))
    measure_norms(net, torch.optim.AdamW(net.parameters(), lr=1e-2), folder)
    return {"scenario": "norms"}


def refusal() -> dict[str, Any]:
    """The last rank names a guard that there is not; then all of them name the same one."""
    optimizer = torch.optim.SGD(model().parameters(), lr=0.1)
    try:
        attach(optimizer, "default" if rank < size - 1 else "defualt", trace=folder, run_id="refused")
        words = ""
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
    hooks = len(optimizer._optimizer_step_pre_hooks)
    attach(optimizer, "default", trace=folder, run_id="refused").close()
    return {"scenario": "refusal", "words": words, "hooks": hooks}


def resumption() -> dict[str, Any]:
    """A memory that is damaged on the last rank, then one that is another run's there, then the same one for all."""
    optimizer = torch.optim.SGD(model().parameters(), lr=0.1)
    words = []
    with attach(optimizer, "default", trace=folder, run_id="resumed") as live:
        fresh = {**live.state_dict(), "step": 7}
        for other in ({**fresh, "fingerprint": "another"}, {**fresh, "step": 8}, {"fingerprint": 3.0}, fresh):
            try:
                live.load_state_dict(other if rank == size - 1 else fresh)
                words.append("")
            except Exception as error:
                words.append(f"{type(error).__name__}: {error}")
            words.append(live.step)
    return {"scenario": "resumption", "words": words}


def train(net: torch.nn.Module, optimizer: torch.optim.Optimizer, live: Any, steps: int) -> None:
    """So many steps on this rank's batches, guarded or not."""
    for step in range(steps):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        if live is not None:
            live.observe(loss)
        optimizer.step()


def join() -> dict[str, Any]:
    """Epochs of unequally many batches: even without `join()`, then uneven within it, guarded and not."""
    weights, words = [], []
    for guarded in (False, True):
        net = DistributedDataParallel(model())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        live = attach(optimizer, "default", trace=folder, run_id="join") if guarded else None
        for within, steps in ((False, 5), (True, 12 if rank else 20)):
            with net.join(enable=within):
                train(net, optimizer, live, steps)
        if live is not None:
            words.append(live.grounded)
            live.close()
        weights.append([float(p.detach().double().sum()) for p in net.parameters()])
    return {"scenario": "join", "weights": weights, "words": words}


def local_sgd() -> dict[str, Any]:
    """A round of unequally many local steps, then the mean of the weights: guarded over a group of its own, and not."""
    weights, words = [], []
    for guarded in (False, True):
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        group = distributed.new_group(timeout=timedelta(seconds=1)) if guarded else None
        live = attach(optimizer, "default", process_group=group) if guarded else None
        train(net, optimizer, live, 4 + 2 * rank)
        for parameter in net.parameters():
            distributed.all_reduce(parameter.data)
        if live is not None:
            words.append(live.grounded)
            live.close()
        weights.append([float(p.detach().double().sum()) for p in net.parameters()])
    return {"scenario": "local_sgd", "weights": weights, "words": words}


LATE = {"delay_steps": 1}
SCENARIOS: dict[str, Callable[[], dict[str, Any]]] = {
    "ddp": lambda: fly("ddp", EAGER, fault=spike, at=slow_last_rank, tokens=lambda: 100.0 * (rank + 1)),
    "ddp_late": lambda: fly("ddp_late", EAGER.with_changes(LATE), fault=spike, at=slow_last_rank),
    "nan": lambda: fly("nan", EAGER, fault=nan_on_the_last_rank),
    "nan_late": lambda: fly("nan_late", EAGER.with_changes(LATE), fault=nan_on_the_last_rank),
    "broken": lambda: fly("broken", EAGER, fault=spike, at=break_here),
    "broken_late": lambda: fly("broken_late", EAGER.with_changes(LATE), fault=spike, at=break_here),
    "disagreement": lambda: fly("disagreement", EAGER, at=disagree),
    "recorder": lambda: fly("recorder", EAGER, fault=spike, at=break_recorder),
    "rollback": lambda: fly("rollback", REWINDING, fault=spike, snapshots=Snapshots(every_steps=2)),
    "fsdp": lambda: fly("fsdp", EAGER, fault=spike, sharded=True),
    "fsdp_late": lambda: fly("fsdp_late", EAGER.with_changes(LATE), fault=nan_on_the_last_rank, sharded=True),
    "fsdp_rollback": lambda: fly(
        "fsdp_rollback", REWINDING, fault=spike, sharded=True, snapshots=Snapshots(every_steps=2)
    ),
    "different": lambda: fly("different", EAGER if rank else REWINDING, snapshots=Snapshots()),
    "norms": norms,
    "refusal": refusal,
    "resumption": resumption,
    "join": join,
    "local_sgd": local_sgd,
    "death": lambda: fly("death", EAGER, fault=spike, at=die),
}


def run_rank() -> None:
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{home / 'store'}", rank=rank, world_size=size)
    with (home / f"rank-{rank}.jsonl").open("w", buffering=1) as out:
        for name in scenarios:
            try:
                told = SCENARIOS[name]()
            except Exception as error:
                told = {"scenario": name, "error": f"{type(error).__name__}: {error}"}
            out.write(json.dumps(told) + "\n")
    # a rank that lost another one would wait for it here
    os._exit(0)


def start(number: int, place: Path, names: list[str]) -> None:
    """Fork the ranks, print their process numbers, and wait for them."""
    global size, home, folder, scenarios, rank
    size, home, folder, scenarios = number, place, place / "traces", names
    children = []
    for rank in range(size):  # noqa: B007
        child = os.fork()
        if child == 0:
            run_rank()
        children.append(child)
    print(*children, flush=True)
    for child in children:
        os.waitpid(child, 0)
