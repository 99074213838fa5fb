"""The training loop that every script shares, from the first step to the published checkpoint.

What is trained is a `Learner`: a module that takes a batch and returns the loss, and that holds all that must survive
an interruption (centres, queues, momentum encoders) in its parameters and buffers. Randomness is a function of the step
(`training.randomness`), the learning rate too, so a saved state consists of weights, averages, optimiser, scaler and
step.
"""

import json
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from timm.utils.distributed import distribute_bn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from training import distributed
from training.logs import RunLog
from training.optim import Average, make_optimizer, make_scheduler
from training.randomness import EVALUATION, STEP, seed_everything
from training.samplers import EpochBatches
from training.settings import LoopConfig, SettingsError, accumulation, as_json, autocast, check_same
from training.state import check_same_step, is_finished, load_state, metrics_of, open_run, save_state, signal_noted

LEAST_SCALE = 2.0**-10  # if fp16 gradients overflow even so, the scale is not the cause


class Learner(nn.Module):
    """A module: forward(images, targets, ...) -> loss, the mean over the batch. Its `model` is averaged and saved."""

    model: nn.Module

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch, also before the one in which a run is resumed."""

    def after_step(self) -> None:
        """Called after each optimiser step."""

    def deployed(self, model: nn.Module) -> nn.Module:
        """Return the plain model to evaluate and save, from `model` (`self.model` or its average)."""
        return model


class StopTraining(Exception):  # noqa: N818
    """Raised by an evaluation to end the run with the checkpoint of the epoch before."""


class DivergenceError(RuntimeError):
    """The loss or the gradient is not finite; the message names the step."""


class Terminated(Exception):  # noqa: N818
    """The process received SIGTERM; the state is saved."""


def fit(
    learner: Learner,
    loader: DataLoader[Any],
    config: LoopConfig,
    arguments: dict[str, Any],
    *,
    evaluate: Callable[[nn.Module], dict[str, float]],
    save: Callable[[Path, nn.Module], None],
    console: Console,
) -> dict[str, float]:
    """Train and publish config.output, unless it is finished already; return the metrics of the last epoch.

    `loader` is made by `training.loaders.make_loader(train=True)`; `learner` is on config.device. `arguments` (JSON
    values) are stored as args.json, and a run is resumed only with the same ones. `evaluate(model)` is called in every
    process, `save(folder, model)` in the first one. Raises `DivergenceError`, `SettingsError`, `StateError`,
    `Terminated`.
    """
    main, world = distributed.rank() == 0, distributed.world_size()
    device = torch.device(config.device)
    batches = cast(EpochBatches, loader.batch_sampler)
    accumulate = accumulation(config, batches.batch_size, world, len(batches))
    steps_per_epoch = len(batches) // accumulate
    images_per_step = batches.batch_size * accumulate * world
    total_steps = config.epochs * steps_per_epoch

    if config.warmup_epochs >= config.epochs:
        console.print("the learning rate rises to the end: --warmup-epochs below --epochs lets it fall")
    if (taken := steps_per_epoch * images_per_step) < 0.9 * batches.size:
        console.print(f"an epoch takes {taken} of the {batches.size} images, in whole steps of {images_per_step}")

    optimizer = make_optimizer(learner, learner.model, config)
    scheduler = make_scheduler(optimizer, config, steps_per_epoch)
    scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
    ema = Average(learner.model, config.ema_decay, config.ema_warmup) if config.ema_decay else None
    averaged = ema.module if ema else learner.model
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    last = config.output / "last"
    arguments = {**arguments, "images": batches.size, "images_per_step": images_per_step}
    defaults = as_json(type(config)())
    step, evaluated, loss_sum, metrics = 0, 0, 0.0, {}
    state = load_state(last) if config.resume == "auto" else None
    finished = config.resume == "auto" and state is None and is_finished(config.output)
    check_same_step(state["step"] if state else total_steps if finished else 0, last, device)
    if finished:
        metrics = metrics_of(config.output, arguments, defaults)
        console.print(f"{config.output} is finished already: --resume never trains it again")
        return metrics
    if state:
        check_same(json.loads(state["arguments"]), arguments, last, defaults)
        learner.load_state_dict(state["learner"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(deepcopy(state["optimizer"]))  # on a CPU it would keep the mapped file's tensors
        scaler.load_state_dict(state["scaler"])
        step, evaluated, loss_sum, metrics = (state[name] for name in ("step", "evaluated", "loss_sum", "metrics"))
    del state  # else every process would keep it in memory to the end

    def save_run() -> None:
        if main:
            parts = {"learner": learner, "averaged": averaged, "optimizer": optimizer, "scaler": scaler}
            values = {"step": step, "evaluated": evaluated, "loss_sum": loss_sum, "metrics": metrics}
            states = {name: part.state_dict() for name, part in parts.items()}
            save_state(last, {**states, **values, "arguments": json.dumps(arguments)})

    network: Any = torch.compile(learner) if config.compile else learner
    if world > 1:
        network = distributed.data_parallel(network, device)

    with (
        open_run(config.output, arguments, afresh=config.resume == "never") if main else nullcontext(),
        RunLog(config, last, console, total_steps, step, evaluated, main) as log,
        signal_noted(signal.SIGTERM) as stop_asked,
    ):
        if step:
            console.print(f"resumed at step {step} of {total_steps}")
        for epoch in range(evaluated, config.epochs):
            last_step = (epoch + 1) * steps_per_epoch
            batches.set_position(epoch, first=(step - epoch * steps_per_epoch) * accumulate)
            learner.train()
            learner.start_epoch(epoch, config.epochs)
            log.start_epoch()
            loading = log.timed(loader)
            while step < last_step:
                seed_everything(config.seed, STEP, step, distributed.rank())
                scheduler.step_update(step)
                loss = _backward(network, loading, accumulate, config, scaler)
                scaler.unscale_(optimizer)
                norm = _gradient_norm(parameters, config.clip_grad)
                stop_now = torch.full_like(loss, stop_asked())  # torch.tensor(number) would wait for a GPU
                signals = distributed.all_sum(torch.stack([loss / world, norm.detach().float() / world, stop_now]))
                scaler.step(optimizer)
                optimizer.zero_grad(set_to_none=True)
                learner.after_step()
                if ema:
                    ema.update(learner.model, step=step + 1)
                loss_now, norm_now, stop = signals.tolist()  # waits for a GPU, whose queue has the whole step by now
                _check_finite(loss_now, norm_now, step, epoch, config, scaler)
                scaler.update()
                step += 1
                loss_sum += loss_now
                values = {"loss": loss_now, "grad_norm": norm_now, "lr": optimizer.param_groups[-1]["lr"]}
                log.step(epoch, step, images_per_step, values)
                if step == last_step and world > 1:
                    distribute_bn(learner.model, world, reduce=True)
                    distribute_bn(averaged, world, reduce=True)
                if stop or step == last_step or (config.save_every and step % config.save_every == 0):
                    save_run()
                if stop:
                    raise Terminated(f"stopped by SIGTERM after step {step}; {last} has the state to resume")

            deployed = learner.deployed(averaged)
            seed_everything(config.seed, EVALUATION, step, distributed.rank())
            try:
                with autocast(config.device, config.amp):
                    metrics = evaluate(deployed)
            except StopTraining as reason:
                console.print(f"stopped in epoch {epoch + 1}: {reason}")
                break
            record = {"epoch": epoch + 1, "step": step, "loss": loss_sum / steps_per_epoch}
            log.epoch({**record, "lr": optimizer.param_groups[-1]["lr"]}, metrics)
            loss_sum, evaluated = 0.0, epoch + 1
            if main:
                save(last, deployed)
            save_run()
    return metrics


def _backward(
    network: Any, loading: Iterator[Any], accumulate: int, config: LoopConfig, scaler: torch.amp.GradScaler
) -> Tensor:
    """Add the gradients of a step's `accumulate` batches; return the mean of this process's losses."""
    device = torch.device(config.device)
    loss = torch.zeros((), device=device)
    for micro in range(accumulate):
        batch = [tensor.to(device, non_blocking=True) for tensor in next(loading)]
        hold = distributed.world_size() > 1 and micro + 1 < accumulate
        with network.no_sync() if hold else nullcontext():
            with autocast(config.device, config.amp):
                part = _loss(network, batch) / accumulate
            scaler.scale(part).backward()
        loss += part.detach().float()
    return loss


def _gradient_norm(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """Return the norm [] of all gradients together, and scale them down to norm `limit` unless that is 0."""
    if limit:
        return nn.utils.clip_grad_norm_(parameters, limit)
    return nn.utils.get_total_norm(each.grad for each in parameters if each.grad is not None)


def _loss(network: Any, batch: list[Any]) -> Tensor:
    try:
        return network(*batch)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise SettingsError(
            f"a batch of {len(batch[0])} image leaves a batch norm one value per channel, too few to learn from: "
            "use --batch-size 2 or more, or a larger --image-size"
        ) from error


def _check_finite(
    loss: float, norm: float, step: int, epoch: int, config: LoopConfig, scaler: torch.amp.GradScaler
) -> None:
    where = f"in step {step + 1}, epoch {epoch + 1}: lower --lr {config.lr}"
    if not math.isfinite(loss):
        raise DivergenceError(f"the loss is {loss} {where}")
    if not math.isfinite(norm) and not (scaler.is_enabled() and scaler.get_scale() > LEAST_SCALE):
        raise DivergenceError(f"the gradient's norm is {norm} {where}")  # with fp16 the scaler skips the step
